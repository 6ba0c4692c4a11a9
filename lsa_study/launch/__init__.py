"""Where runs are carried out: here through a local queue, or on a cluster."""
