"""The RocketMQ remoting protocol: frames, commands, typed headers and bodies, server and client."""
