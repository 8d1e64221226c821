"""What a run will need before it is started: parameters, memory, FLOPs, hours. Nothing is read but settings."""
