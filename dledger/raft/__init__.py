"""The replicated log: pysyncobj behind one adapter."""
