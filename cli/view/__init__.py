"""`dualsd view`: the workbench, a page on this machine that shows matches as settings change."""
