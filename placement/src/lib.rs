//! Where each block of a network runs: problem, checker and strategies, pure.
