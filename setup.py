"""What registry-verbs is called, what it needs and why, and what its installation adds to a machine."""

from setuptools import setup

setup(
    name="registry-verbs",
    version="0.1.0",
    description="Hands out a registry tag as an App Container Image, one squashed archive or a root file system",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        "data",
        "data.directories",
        "data.migrations",
        "data.migrations.versions",
        "data.storage",
        "endpoints",
        "endpoints.v2",
        "formats",
        "util",
    ],
    py_modules=["app"],
    install_requires=[
        "flask>=3.0",  # the ways in by HTTP, and the extension that a host application mounts
        "click>=8.1",  # the command line; Flask brings it anyway
        "sqlalchemy>=2.0",  # the registry's tables, on SQLite and PostgreSQL alike
        "alembic>=1.14",  # versions of our own tables; Quay's are never touched
        "boto3>=1.34",  # blobs in S3, MinIO and Ceph: multipart writes, ranged reads, presigned URLs
        "urllib3>=1.26",  # its errors are what a read over boto3 may raise; boto3 brings it anyway
        "isal>=1.6",  # gzip at twice the speed of zlib when reading and five times when writing, without the GIL
        # zstd as Python 3.14 has it built in: it tells a cut frame from a whole one, and bounds each inflated piece
        'backports.zstd>=1.0; python_version < "3.14"',
        "gunicorn>=22.0",  # `registry-verbs serve`
        "pyyaml>=6.0",  # Quay's config.yaml
        "rich>=13.0",  # progress on a terminal
        "bcrypt>=4.0",  # passwords as Quay keeps them
        "cryptography>=42.0",  # robots' tokens as Quay keeps them: AES-CCM
        "pyjwt>=2.8",  # the tokens that /v2/auth signs
        "blake3>=1.0",  # the third digest algorithm that the image-spec registers; hashlib has the other two
        "prometheus-client>=0.20",  # /metrics, summed over gunicorn's processes
    ],
    extras_require={
        "postgres": [
            "psycopg[binary]>=3.1",  # DB_URI=postgresql://…: a live Quay's database
        ],
        "mysql": [
            "pymysql>=1.1",  # DB_URI=mysql+pymysql://…: Quay on MySQL or MariaDB; pure Python, so it installs anywhere
        ],
        "celery": [
            "celery[redis]>=5.4",  # VERBS_BROKER_URL: jobs on many machines, over Redis or RabbitMQ
        ],
        "ldap": [
            # AUTHENTICATION_TYPE: LDAP. Of three it alone installs without a compiler (python-ldap and bonsai come for
            # Linux as sources only). It changes no more, hence our own sockets, bounds and TLS around it.
            "ldap3>=2.9.1,<3",
        ],
        "azure": [
            "azure-storage-blob>=12.20",  # AzureStorage: Microsoft's own client; block blobs, SAS
        ],
        "swift": [
            "python-swiftclient>=4.4",  # SwiftStorage: OpenStack's own client; its tokens, retries, temporary URLs
            "python-keystoneclient>=5.0",  # its logins of version 2 and 3; python-swiftclient does not bring it
        ],
        "dev": [
            "boto3-stubs[s3]>=1.34",  # types of the S3 client, for mypy
            "coverage>=7.4",  # the gate on util and formats
            "hypothesis>=6.100",  # random stacks of layers against the obvious model
            "import-linter>=2.0",  # the direction of imports
            "moto[s3,server]>=5.0",  # an S3 on loopback for the storage suite
            "mypy>=1.10",
            "openapi-spec-validator>=0.7",  # the admin API's document, and every answer held against it
            "pytest>=8.0",
            "pytest-cov>=5.0",
            "pytest-xdist>=3.5",  # test files side by side: many of them wait for servers
            "pytest-socket>=0.7",  # no test leaves the machine
            "ruff>=0.6",
            "types-pyyaml",
            "zstandard>=0.22",  # a second implementation to write the tests' zstd streams
        ],
    },
    entry_points={
        "console_scripts": ["registry-verbs = app:main"],
        "registry_verbs.formats": [
            "aci = formats.aci:ACIImage",
            "bundle = formats.bundle:RuntimeBundle",
            "incus = formats.incus:IncusImage",
            "ext4 = formats.ext4:Ext4Disk",
            "squashfs = formats.squashfs:Squashfs",
            "squash = formats.squashed:SquashedDockerImage",
            "oci = formats.ociarchive:OciArchive",
            "rootfs = formats.rootfs:RootfsTar",
            "wsl = formats.wsl:WslDistribution",
        ],
    },
)
