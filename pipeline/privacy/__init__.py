"""Certificates: the mechanism, what it costs in (epsilon, delta), its noise, and the assumptions that must hold."""
