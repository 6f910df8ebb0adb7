"""Scripted experts: they see the simulator's state, and show the policy what to do."""
