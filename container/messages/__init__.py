"""Messages between processes: msgspec structs in MessagePack frames."""
