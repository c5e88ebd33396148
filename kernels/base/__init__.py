"""What every kernel stands on: launching, SPECs, chips, and how values, bytes and times are judged."""
