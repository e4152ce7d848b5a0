"""How peers that nobody can dial are reached: through forwarders, which carry what they cannot read."""
