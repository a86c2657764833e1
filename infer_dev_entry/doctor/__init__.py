"""The doctor: readers of this machine's facts, and pure checks that make each fact a row with a verdict and a mend."""
