"""One iteration of the batch sequential quadratic Hamiltonian method: the mathematics."""
