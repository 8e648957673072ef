"""Forward, adjoint and trial sweeps."""
