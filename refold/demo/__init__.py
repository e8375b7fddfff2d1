"""The demonstration: real data, real processes, real faults; `refold demo`."""
