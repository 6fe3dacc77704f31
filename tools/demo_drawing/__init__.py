"""The demo dataset's pictures, drawn in code: a picture is a function of its category, split and number.

The data set's own pictures ship as files (`tools/write_demo_pictures.py`); the demo model learns from others.
"""
