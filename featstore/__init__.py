"""The engine of dualsd: all that touches the diffusion model, the datasets or the disk."""
