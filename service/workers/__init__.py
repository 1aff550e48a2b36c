"""Several processes behind one address: a supervisor, and what workers need of each other."""
