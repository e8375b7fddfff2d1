"""What the fault tests share: buses that fail on purpose, processes to end, and a checker that trusts nobody."""
