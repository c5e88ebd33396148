"""`python -m bench check`: every launch compiled ahead of time, and the rules that its code must keep."""
