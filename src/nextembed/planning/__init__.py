"""What a run will need before it is started: parameters, memory, arithmetic, hours. Nothing is read but settings."""
