"""`report.html`: what a command measured as one page that needs no network. What is on it, by command; how it is put
together and drawn; its templates."""
