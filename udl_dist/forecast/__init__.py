"""What a job would do on machines that are not here, worked out from parts that are measured on one that is."""
