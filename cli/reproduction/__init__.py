"""`dualsd reproduce`, in steps: what the paper says, what is to be run, what that takes, running it, the tables."""
