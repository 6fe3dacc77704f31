"""The demo dataset's pictures, drawn in code: a picture is a function of its category, split and number."""
