"""The parts of the screen: each takes frozen state, paints it, and posts messages upwards."""
