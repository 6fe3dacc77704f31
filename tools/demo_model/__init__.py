"""Training of the demo model that `featstore/assets/demo_model` ships, stage by stage."""
