"""A task's experiment as stages that are done once: data → SFT → pairs → runs → evaluation → tables and plots."""
