"""Simulated manipulation suites behind one gymnasium interface, and the scripted experts that solve them."""
