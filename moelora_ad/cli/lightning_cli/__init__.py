"""Lightning's command line around our classes: what fit, validate, test, predict, inspect and plan have in common."""
