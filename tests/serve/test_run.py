"""Checks of the job `serve` before it starts or joins Ray: certificates, open services, and other applications of a cluster."""

import datetime
import socket
import ssl

import pytest
from ray.serve.config import HTTPOptions

from red_engine import serve_settings
from yolor_ray.cluster import ray_internals
from yolor_ray.errors import ConfigError, NotFoundError
from yolor_ray.serve import haproxy, local, run, shared

RUNNING = ("RUNNING", "/")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Return paths of a certificate for 127.0.0.1 and of its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    made = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1)).sign(key, hashes.SHA256())
    folder = tmp_path_factory.mktemp("tls")
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(*pem, serialization.NoEncryption()))
    (folder / "locked.pem").write_bytes(key.private_bytes(*pem, serialization.BestAvailableEncryption(b"word")))
    return folder


def tls(folder, cert="cert.pem", key="key.pem"):
    return serve_settings(tls_cert=str(folder / cert), tls_key=str(folder / key))


def test_a_certificate_with_its_key_is_accepted_and_linked_for_haproxy(certificate, tmp_path):
    local.check_access_files(tls(certificate))
    local.place_certificate(tls(certificate), tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / haproxy.CERTIFICATE_FILE, f"{tmp_path / haproxy.CERTIFICATE_FILE}.key")


@pytest.mark.parametrize("files", [("cert.pem", "cert.pem"), ("key.pem", "key.pem"), ("none.pem", "key.pem"), ("cert.pem", "locked.pem")])
def test_files_that_are_no_certificate_and_its_key_are_refused_by_name(certificate, files):
    with pytest.raises(ConfigError, match=r"tls_cert, tls_key: found .*\.pem and .*\.pem \("):
        local.check_access_files(tls(certificate, *files))


def test_missing_keys_are_refused_before_ray_starts(tmp_path):
    with pytest.raises(NotFoundError, match="keys"):
        local.check_access_files(serve_settings(api_keys=str(tmp_path / "keys")))


def test_haproxy_gets_no_tls_from_ray_and_the_python_proxy_does(certificate):
    settings = tls(certificate)
    assert set(run._http_options(settings, uses_haproxy=True)) == {"host", "port"}
    options = HTTPOptions(**run._http_options(settings, uses_haproxy=False))
    assert (options.ssl_certfile, options.ssl_keyfile) == (settings.tls_cert, settings.tls_key)
    assert set(run._http_options(serve_settings(), uses_haproxy=False)) == {"host", "port"}


def internal_ports(folder):
    environment = local._haproxy_environment(folder)
    names = ("HAPROXY_STATISTICS_PORT", "HAPROXY_METRICS_PORT", "FALLBACK_PORT", "MIN_REPLICA_PORT", "MAX_REPLICA_PORT")
    return [int(environment[getattr(ray_internals, name)]) for name in names]


def test_services_on_one_machine_have_no_internal_port_in_common(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "PORTS", range(20_000, 20_000 + 2 * local.PORTS_PER_SERVICE))
    statistics, metrics, fallback, first, last = internal_ports(tmp_path)
    assert last - first > 200 and not {statistics, metrics, fallback} & set(range(first, last + 1))
    with socket.create_server(("127.0.0.1", fallback)):
        others = internal_ports(tmp_path)
        assert not set(range(min(others), max(others) + 1)) & {statistics, metrics, fallback, *range(first, last + 1)}
        with (
            socket.create_server(("127.0.0.1", others[-1])),
            pytest.raises(ConfigError, match=r"no free block on 127\.0\.0\.1, expected 250 free ports in a row, from 20000 to 20499"),
        ):
            internal_ports(tmp_path)


@pytest.mark.parametrize(
    ("changes", "url"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"host": "0.0.0.0", "prefix": "/cars"}, "http://127.0.0.1:8000/cars"),
        ({"host": "::", "tls_cert": "a", "tls_key": "b"}, "https://[::1]:8000"),
        ({"host": "node.example", "port": 80}, "http://node.example:80"),
    ],
)
def test_the_url_is_the_one_that_clients_can_use(changes, url):
    assert run._url(serve_settings(**changes)) == url


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "--api-keys, --tls-cert and --tls-key' risk='anyone"),
        ({"api_keys": "k"}, "missing='--tls-cert and --tls-key' risk='keys and images"),
        ({"tls_cert": "a", "tls_key": "b"}, "missing='--api-keys' risk='anyone"),
        ({"tls_cert": "a", "tls_key": "b", "api_keys": "k"}, ""),
    ],
)
def test_a_service_for_other_machines_without_keys_or_tls_is_told(caplog, changes, told):
    run._warn_of_open_service(serve_settings(host="0.0.0.0", **changes))
    assert told in caplog.text and bool(told) == ("event=service_is_open host=0.0.0.0" in caplog.text)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_a_service_for_this_machine_alone_is_not_told(caplog, host):
    run._warn_of_open_service(serve_settings(host=host))
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("changes", "options", "applications", "message"),
    [
        ({"port": 8010}, {}, {}, r"port: found 8010, expected 8000.*give --host 127.0.0.1 --port 8000"),
        ({}, {"host": "0.0.0.0"}, {}, "host: found 127.0.0.1, expected 0.0.0.0"),
        ({"tls_cert": "a", "tls_key": "b"}, {}, {}, "tls_cert: found a, expected none"),
        ({}, {"ssl_keyfile": "k", "ssl_certfile": "c"}, {}, "tls_cert: found none, expected c"),
        (
            {},
            {},
            {"yolor_ray": RUNNING},
            r"name: found yolor_ray, an application of this cluster \(RUNNING\), expected .* --name and --prefix",
        ),
        ({}, {}, {"yolor_ray": ("DELETING", None)}, r"name: found yolor_ray, .*\(DELETING\)"),
        ({"name": "cars"}, {}, {"other": RUNNING}, "prefix: found /, that of the application other, expected another than /"),
        ({"prefix": "/cars"}, {}, {"yolor_ray": ("UNHEALTHY", "/")}, "name: found yolor_ray"),
    ],
)
def test_a_service_that_would_replace_another_or_not_be_reachable_is_refused(changes, options, applications, message):
    with pytest.raises(ConfigError, match=message):
        shared.check_beside(serve_settings(**changes), HTTPOptions(**{"host": "127.0.0.1", **options}), applications)


@pytest.mark.parametrize(
    ("changes", "applications"),
    [
        ({"name": "cars", "prefix": "/cars"}, {"yolor_ray": RUNNING, "jobs": ("RUNNING", None)}),
        ({}, {"yolor_ray": ("DEPLOY_FAILED", "/")}),
        ({}, {}),
    ],
)
def test_a_service_with_a_name_and_prefix_of_its_own_fits_beside_others(changes, applications):
    shared.check_beside(serve_settings(**changes), HTTPOptions(host="127.0.0.1"), applications)


@pytest.mark.parametrize(
    "wrong", [{"prefix": "cars"}, {"prefix": "/cars/"}, {"prefix": "/a{b}"}, {"prefix": ""}, {"name": ""}, {"name": "a b"}]
)
def test_a_wrong_name_or_prefix_is_refused(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}: found"):
        serve_settings(**wrong)
