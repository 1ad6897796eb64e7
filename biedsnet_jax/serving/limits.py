"""Limits of what visitors may ask of a server."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one visitor, unless a field says otherwise."""

    upload: int = 256 * 2**20  # bytes
    upload_seconds: int = 300
    upload_rate: int = 8 * 2**10  # bytes/s, on average, after upload_grace seconds
    upload_grace: int = 10
    # Uploads of all visitors that are not segmented yet.
    waiting: int = 16
    # Results of all visitors.
    kept: int = 16
    # How long a result is kept after the last request for it.
    keep_seconds: int = 600
    job_seconds: int = 600
    # The share of `job_seconds` for reading, before the first slice is segmented.
    read_seconds: int = 60
    memory: int = 3 * 2**30  # bytes of the process that reads
    # Files of an archive.
    files: int = 4096
    unpacked: int = 2**31  # bytes of an archive or a .nii.gz
    # Slices of a scan.
    slices: int = 2048
    side: int = 4096  # pixels
    # Voxels of a scan: 1024 slices of 512 x 512.
    voxels: int = 2**28
    # Connections of all visitors.
    connections: int = 128
    # Connections of one address, except those of this machine itself.
    connections_each: int = 32
    # Time for the head of a request, and between two requests.
    header_seconds: int = 10
    # Time in which nothing of an answer is taken; systems take it in large pieces.
    answer_seconds: int = 60
