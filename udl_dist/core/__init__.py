"""The settings schema, random numbers by key, durable files: what every package stands on."""
