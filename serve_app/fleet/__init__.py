"""The fleet before it is bought: real admission and placement under a clock that jumps from event to event."""
