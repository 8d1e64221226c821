"""Emu: images, video and text in one sequence."""
