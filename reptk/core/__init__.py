"""What every other part may use: randomness, ranks, files, messages. Nothing here imports the rest of reptk."""
