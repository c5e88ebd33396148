"""`python -m bench gate`: is anything slower than its baseline? By times on a GPU, else by compiled code."""
