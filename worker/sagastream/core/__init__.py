"""The pure core: what a saga and a delivered command lead to. No Redis, no clock, no randomness."""
