"""Where the audio of corpora is stored: folders, archives, remote places."""
