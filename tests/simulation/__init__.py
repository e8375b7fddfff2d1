"""A whole federation in one thread, under a scheduler and a clock that one number decides: deterministic simulation.

What is real: the server with its four groups and its restarts, the client with its session, receipts, witness and heartbeats,
`create`, `enroll`, the log, the codecs, the keys. What is simulated: the bus's answers (the bus in memory behind `SimBus`), the
clients' disks (`SimOutbox`), threads (coroutines of `greenlet`, behind what `threading` offers), time (`ManualClock`) and
random numbers. `kit.simulated` puts these in their places, and nothing else of Refold is changed.

A seed stands for a *scenario*: who takes part, which policy, and a list of *faults* (`scenario`, `faults`). A fault happens
when a point is passed for the n-th time, or at a time: crashes before, after and in the middle of every durable step, lost and
late acknowledgements, records of dead writers that arrive behind or between their successors', holes, repeats, corruption,
frozen processes that thaw past their lease, rebalances, clients that are slow, die, lose their disk, exist twice or lie,
strangers who write garbage, replays and forgeries, group offsets that somebody moved, a log that loses its tail. Actors take
turns at random; they may be interrupted at each read and before and after each write.

When the faults are over and the federation ended, the run is judged (`judgement`) from the topics' bytes, what ever lay in
`updates`, and what clients were shown: by `tests.checker`, which knows the records and no code of the groups, and by what the
simulation adds to it. I1: each update has one verdict, an enrolled client's one of its own. I2: accepted once. I3: receipts are
kept. I4: rounds, snapshots and rebuilds are the checker's own integer fold. I5: chains are dense. I11: everything ends within
bounds of time and steps, and finished work is not asked for again.

A checker that finds nothing must be able to find something: `bugs` plants bugs, each of which is caught, and a block of seeds
fails if one of the rare states of `campaign.MUST_HAPPEN` never occurred in it.

::

    python -m tests.simulation --seed 38                       one seed, with its trace
    python -m tests.simulation --seeds 0:5000 --jobs 2         a block; a failure is shrunk to the faults that it needs
    python -m tests.simulation --seed 38 --only 1,4            with two of its faults alone
    python -m tests.simulation --seed 125 --bug holes_accepted with a bug planted
    python -m tests.simulation --bugs                          every planted bug, until it is caught

The same seed gives the same history, byte for byte, in every process, as long as nothing that it runs through is changed: the
interpreter is started with `PYTHONHASHSEED=0` for it, because sets of names have an order, too.
"""
