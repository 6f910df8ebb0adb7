"""The C++ backend."""
