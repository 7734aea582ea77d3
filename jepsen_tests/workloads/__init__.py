"""What clients do during a run, and the histories they write."""
