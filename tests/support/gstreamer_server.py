"""Sends a file of MPEG-TS (H.264, AAC) once, at its pace, by GStreamer's RTSP server. The system's Python runs it.

    /usr/bin/python3 gstreamer_server.py FILE PORT [USER PASSWORD]

It prints "ready" when it accepts requests for rtsp://127.0.0.1:PORT/live.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

path, port, *credentials = sys.argv[1:]
Gst.init(None)
server, factory = GstRtspServer.RTSPServer(), GstRtspServer.RTSPMediaFactory()
server.set_address("127.0.0.1")
server.set_service(port)
factory.set_launch(
    f'( filesrc location="{path}" ! tsdemux name=d '
    "d. ! queue ! h264parse ! identity sync=true ! rtph264pay name=pay0 pt=96 config-interval=-1 "
    "d. ! queue ! aacparse ! identity sync=true ! rtpmp4gpay name=pay1 pt=97 )"
)
if credentials:
    auth, token = GstRtspServer.RTSPAuth(), GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "viewer")
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(*credentials), token)
    server.set_auth(auth)
    permissions = GstRtspServer.RTSPPermissions()
    for kind in ("access", "construct"):
        permissions.add_permission_for_role("viewer", f"media.factory.{kind}", True)
    factory.set_permissions(permissions)
server.get_mount_points().add_factory("/live", factory)
server.attach(None)
print("ready", flush=True)
GLib.MainLoop().run()
