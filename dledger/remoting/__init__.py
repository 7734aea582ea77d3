"""The RocketMQ remoting protocol: frames, headers, bodies; asyncio server and client."""
