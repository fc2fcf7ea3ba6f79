"""What stands in for the world outside: a scripted provider and a network that misbehaves.

Fakes behave; tests read what they saw.
"""
