"""What any training command needs: options, files, processes, and a training that can go on."""
