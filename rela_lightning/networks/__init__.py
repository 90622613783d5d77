"""Vision networks: how they are named and built, where the backbone of a module is, how its features are read.

Priors, methods, probes, exports and the injection all use these.
"""
