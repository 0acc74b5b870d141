"""Makes certificates and CRLs of any shape, the wrong ones most of all.

Everything is bytes: der() writes a value, Cert puts a certificate together
from fields that a caller may replace by any bytes, and `spoil` may change what
came out, before or after the signature.  Keys are cheap and the same in every
run where mathematics allows it (elliptic curves, from a name); the few RSA and
Ed25519 ones are made once by openssl and kept in a folder.

Signatures are pure Python.  None of this is fit for anything but tests: the
keys are known and nothing runs in constant time.
"""

import base64
import fcntl
import hashlib
import ipaddress
import os
import re
import subprocess
import time

# ---- DER -------------------------------------------------------------------


def der(tag, *parts):
    """A value: one byte of tag, the shortest length, the parts' bytes."""
    body = b"".join(parts)
    if len(body) < 0x80:
        return bytes([tag, len(body)]) + body
    size = (len(body).bit_length() + 7) // 8
    return bytes([tag, 0x80 | size]) + len(body).to_bytes(size, "big") + body


def seq(*parts):
    return der(0x30, *parts)


def set_of(*parts):
    return der(0x31, *sorted(parts))


def integer(n):
    return der(2, n.to_bytes(n.bit_length() // 8 + 1, "big", signed=True))


def oid(text):
    arcs = [int(a) for a in text.split(".")]
    out = b""
    for arc in [arcs[0] * 40 + arcs[1]] + arcs[2:]:
        part = bytes([arc & 0x7f])
        while arc > 0x7f:
            arc >>= 7
            part = bytes([arc & 0x7f | 0x80]) + part
        out += part
    return der(6, out)


def boolean(value):
    return der(1, b"\xff" if value else b"\0")


def bits(data, unused=0):
    return der(3, bytes([unused]), data)


def flags(*set_bits):
    """A BIT STRING of named bits, without trailing zeros."""
    if not set_bits:
        return bits(b"")
    size = max(set_bits) + 1
    value = sum(1 << (size - 1 - b) for b in set_bits)
    unused = -size % 8
    return bits((value << unused).to_bytes((size + unused) // 8, "big"),
                unused)


def octets(data):
    return der(4, data)


def context(n, *parts):
    """[n], constructed."""
    return der(0xa0 | n, *parts)


def implicit(n, data):
    """[n], primitive."""
    return der(0x80 | n, data)


NULL = der(5)


def utf8(text):
    return der(12, text.encode())


def printable(text):
    return der(19, text.encode())


def ia5(text):
    return der(22, text if isinstance(text, bytes) else text.encode())


def bmp(text):
    return der(30, text.encode("utf-16-be"))


def teletex(text):
    return der(20, text.encode("latin-1"))


def universal(text):
    return der(28, text.encode("utf-32-be"))


def utc_time(text):
    return der(23, text.encode())


def general_time(text):
    return der(24, text.encode())


def at(seconds):
    """A date as RFC 5280 4.1.2.5 wants it, so many seconds from now."""
    t = time.gmtime(time.time() + seconds)
    if t.tm_year < 2050:
        return utc_time(time.strftime("%y%m%d%H%M%SZ", t))
    return general_time(time.strftime("%Y%m%d%H%M%SZ", t))


def general_at(seconds):
    return general_time(time.strftime("%Y%m%d%H%M%SZ", time.gmtime(
        time.time() + seconds)))


DAY = 86400

# ---- names -----------------------------------------------------------------

ATTRIBUTES = {"CN": "2.5.4.3", "C": "2.5.4.6", "L": "2.5.4.7", "ST": "2.5.4.8",
              "O": "2.5.4.10", "OU": "2.5.4.11", "SERIAL": "2.5.4.5",
              "DC": "0.9.2342.19200300.100.1.25",
              "EMAIL": "1.2.840.113549.1.9.1"}


def attribute(kind, value, string=utf8):
    """One type and value; a value in bytes is DER already."""
    if kind in ("DC", "EMAIL") and string is utf8:
        string = ia5
    return seq(oid(ATTRIBUTES[kind]),
               value if isinstance(value, bytes) else string(value))


def rdns(*parts, string=utf8):
    """The RDNs of a name: ("CN", "x"), or a list of such for a multi-valued
    one, as bytes without the outer SEQUENCE."""
    return b"".join(
        set_of(*[attribute(k, v, string) for k, v in
                 (part if isinstance(part, list) else [part])])
        for part in parts)


def name(*parts, string=utf8):
    return seq(rdns(*parts, string=string))


# ---- curves ----------------------------------------------------------------

class Curve:
    """y² = x³ - 3x + b over p, in Jacobian coordinates."""

    def __init__(self, curve_oid, size, p, b, n, gx, gy):
        self.oid, self.size, self.p, self.b, self.n = curve_oid, size, p, b, n
        self.powers = []
        point = (gx, gy, 1)
        for _ in range(n.bit_length()):
            self.powers.append(point)
            point = self.double(point)

    def double(self, point):
        x, y, z = point
        p = self.p
        yy = y * y % p
        s = 4 * x * yy % p
        zz = z * z % p
        m = 3 * (x - zz) * (x + zz) % p
        x3 = (m * m - 2 * s) % p
        return (x3, (m * (s - x3) - 8 * yy * yy) % p, 2 * y * z % p)

    def add(self, a, b):
        if a is None:
            return b
        p = self.p
        z1, z2 = a[2] * a[2] % p, b[2] * b[2] % p
        u1, u2 = a[0] * z2 % p, b[0] * z1 % p
        s1, s2 = a[1] * z2 * b[2] % p, b[1] * z1 * a[2] % p
        h, r = (u2 - u1) % p, (s2 - s1) % p
        assert h, "never in a sum of different powers of two"
        hh = h * h % p
        hhh = h * hh % p
        v = u1 * hh % p
        x3 = (r * r - hhh - 2 * v) % p
        return (x3, (r * (v - x3) - s1 * hhh) % p, h * a[2] * b[2] % p)

    def times_base(self, k):
        """k·G as (x, y)."""
        point = None
        for power in self.powers:
            if k & 1:
                point = self.add(point, power)
            k >>= 1
        inverse = pow(point[2], -1, self.p)
        square = inverse * inverse % self.p
        return (point[0] * square % self.p,
                point[1] * square * inverse % self.p)


CURVE_NUMBERS = {
    "P-224": ("1.3.132.0.33", 28,
              "ffffffffffffffffffffffffffffffff000000000000000000000001",
              "b4050a850c04b3abf54132565044b0b7d7bfd8ba270b39432355ffb4",
              "ffffffffffffffffffffffffffff16a2e0b8f03e13dd29455c5c2a3d",
              "b70e0cbd6bb4bf7f321390b94a03c1d356c21122343280d6115c1d21",
              "bd376388b5f723fb4c22dfe6cd4375a05a07476444d5819985007e34"),
    "P-256": ("1.2.840.10045.3.1.7", 32,
              "ffffffff00000001000000000000000000000000ffffffffffffffffffffffff",
              "5ac635d8aa3a93e7b3ebbd55769886bc651d06b0cc53b0f63bce3c3e27d2604b",
              "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551",
              "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296",
              "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"),
    "P-384": ("1.3.132.0.34", 48,
              "fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffe"
              "ffffffff0000000000000000ffffffff",
              "b3312fa7e23ee7e4988e056be3f82d19181d9c6efe8141120314088f5013875a"
              "c656398d8a2ed19d2a85c8edd3ec2aef",
              "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf"
              "581a0db248b0a77aecec196accc52973",
              "aa87ca22be8b05378eb1c71ef320ad746e1d3b628ba79b9859f741e082542a38"
              "5502f25dbf55296c3a545e3872760ab7",
              "3617de4a96262c6f5d9e98bf9292dc29f8f41dbd289a147ce9da3113b5f0b8c0"
              "0a60b1ce1d7e819d7a431d7c90ea0e5f"),
    "P-521": ("1.3.132.0.35", 66,
              "01ff" + "f" * 128,
              "0051953eb9618e1c9a1f929a21a0b68540eea2da725b99b315f3b8b489918ef1"
              "09e156193951ec7e937b1652c0bd3bb1bf073573df883d2c34f1ef451fd46b50"
              "3f00",
              "01ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"
              "fffa51868783bf2f966b7fcc0148f709a5d03bb5c9b8899c47aebb6fb71e9138"
              "6409",
              "00c6858e06b70404e9cd9e3ecb662395b4429c648139053fb521f828af606b4d"
              "3dbaa14b5e77efe75928fe1dc127a2ffa8de3348b3c1856a429bf97e7e31c2e5"
              "bd66",
              "011839296a789a3bc0045c8a5fb42c7d1bd998f54449579b446817afbd17273e"
              "662c97ee72995ef42640c550b9013fad0761353c7086a272c24088be94769fd1"
              "6650"),
}
curves = {}


def curve(which):
    if which not in curves:
        numbers = CURVE_NUMBERS[which]
        curves[which] = Curve(*numbers[:2], *[int(n, 16)
                                              for n in numbers[2:]])
    return curves[which]


# ---- keys ------------------------------------------------------------------

DIGESTS = {"md5": "1.2.840.113549.2.5", "sha1": "1.3.14.3.2.26",
           "sha224": "2.16.840.1.101.3.4.2.4",
           "sha256": "2.16.840.1.101.3.4.2.1",
           "sha384": "2.16.840.1.101.3.4.2.2",
           "sha512": "2.16.840.1.101.3.4.2.3"}
ECDSA = {"sha1": "1.2.840.10045.4.1", "sha224": "1.2.840.10045.4.3.1",
         "sha256": "1.2.840.10045.4.3.2", "sha384": "1.2.840.10045.4.3.3",
         "sha512": "1.2.840.10045.4.3.4"}
RSA = {"md5": "1.2.840.113549.1.1.4", "sha1": "1.2.840.113549.1.1.5",
       "sha224": "1.2.840.113549.1.1.14", "sha256": "1.2.840.113549.1.1.11",
       "sha384": "1.2.840.113549.1.1.12", "sha512": "1.2.840.113549.1.1.13"}


class EcKey:
    """From a name, so that the same name is the same key in every run."""

    default = "sha256"

    def __init__(self, seed, which="P-256"):
        self.curve = curve(which)
        stretch = hashlib.shake_256((which + seed).encode()).digest(80)
        self.d = int.from_bytes(stretch, "big") % (self.curve.n - 1) + 1
        x, y = self.curve.times_base(self.d)
        size = self.curve.size
        self.point = b"\4" + x.to_bytes(size, "big") + y.to_bytes(size, "big")

    def spki(self):
        return seq(seq(oid("1.2.840.10045.2.1"), oid(self.curve.oid)),
                   bits(self.point))

    def algorithm(self, alg):
        return seq(oid(ECDSA[alg]))

    def sign(self, alg, data):
        n = self.curve.n
        digest = hashlib.new(alg, data).digest()
        e = int.from_bytes(digest, "big") >> max(
            0, 8 * len(digest) - n.bit_length())
        k = int.from_bytes(hashlib.shake_256(
            digest + self.d.to_bytes(80, "big")).digest(80), "big") % n
        r = self.curve.times_base(k)[0] % n
        return seq(integer(r), integer(pow(k, -1, n) * (e + r * self.d) % n))

    def pkcs8(self):
        private = seq(integer(1), octets(self.d.to_bytes(self.curve.size,
                                                         "big")),
                      context(1, bits(self.point)))
        return seq(integer(0), seq(oid("1.2.840.10045.2.1"),
                                   oid(self.curve.oid)), octets(private))


class RsaKey:
    """Of the pool on disk."""

    default = "sha256"

    def __init__(self, pkcs8):
        self.der = pkcs8
        numbers = der_numbers(pkcs8)
        self.n, self.e, self.d, self.p, self.q = numbers[1:6]

    def spki(self, algorithm=None):
        return seq(algorithm or seq(oid("1.2.840.113549.1.1.1"), NULL),
                   bits(seq(integer(self.n), integer(self.e))))

    def algorithm(self, alg):
        """"sha256", or "pss-sha256[-salt[-mgf digest]]"."""
        if not alg.startswith("pss"):
            return seq(oid(RSA[alg]), NULL)
        digest, salt, mgf = pss_parts(alg)
        return pss_algorithm(digest, salt, mgf)

    def sign(self, alg, data):
        if alg.startswith("pss"):
            return self.raw(self.pss(data, *pss_parts(alg)))
        info = seq(seq(oid(DIGESTS[alg]), NULL),
                   octets(hashlib.new(alg, data).digest()))
        size = (self.n.bit_length() + 7) // 8
        return self.raw(b"\0\1" + b"\xff" * (size - len(info) - 3) + b"\0" +
                        info)

    def pss(self, data, digest, salt_size, mgf):
        """EMSA-PSS-ENCODE of RFC 8017 9.1.1, for whole bytes of modulus."""
        em_bits = self.n.bit_length() - 1
        size = (em_bits + 7) // 8
        salt = b"\x5a" * salt_size
        h = hashlib.new(digest, b"\0" * 8 + hashlib.new(digest, data).digest()
                        + salt).digest()
        db = b"\0" * (size - salt_size - len(h) - 2) + b"\1" + salt
        mask = b"".join(hashlib.new(mgf, h + i.to_bytes(4, "big")).digest()
                        for i in range(size // 16))[:len(db)]
        db = bytes(a ^ b for a, b in zip(db, mask))
        db = bytes([db[0] & 0xff >> (8 * size - em_bits)]) + db[1:]
        return db + h + b"\xbc"

    def raw(self, block):
        m = int.from_bytes(block, "big")
        mp = pow(m % self.p, self.d % (self.p - 1), self.p)
        mq = pow(m % self.q, self.d % (self.q - 1), self.q)
        s = mq + self.q * ((mp - mq) * pow(self.q, -1, self.p) % self.p)
        return s.to_bytes((self.n.bit_length() + 7) // 8, "big")

    def pkcs8(self):
        return self.der


class EdKey:
    """Ed25519; openssl signs, since there are few of them."""

    default = "ed25519"

    def __init__(self, path, pkcs8):
        self.path, self.der = path, pkcs8
        self.public = subprocess.run(
            ["openssl", "pkey", "-in", path, "-pubout", "-outform", "DER"],
            check=True, capture_output=True).stdout

    def spki(self):
        return self.public

    def algorithm(self, alg):
        return seq(oid("1.3.101.112"))

    def sign(self, alg, data):
        source = self.path + ".data%d" % os.getpid()
        with open(source, "wb") as f:
            f.write(data)
        try:
            return subprocess.run(
                ["openssl", "pkeyutl", "-sign", "-rawin", "-inkey", self.path,
                 "-in", source], check=True, capture_output=True).stdout
        finally:
            os.unlink(source)

    def pkcs8(self):
        return self.der


def pss_parts(alg):
    """"pss-sha256-20-sha1" -> digest, salt bytes, digest of the mask."""
    words = alg.split("-")[1:]
    digest = words[0]
    salt = int(words[1]) if len(words) > 1 else hashlib.new(digest).digest_size
    return digest, salt, words[2] if len(words) > 2 else digest


def pss_algorithm(digest, salt, mgf, trailer=None):
    """RSASSA-PSS-params of RFC 4055 3.1, defaults left out as DER demands."""
    def hash_id(h):
        return seq(oid(DIGESTS[h]), NULL)

    parts = b""
    if digest != "sha1":
        parts += context(0, hash_id(digest))
    if mgf != "sha1":
        parts += context(1, seq(oid("1.2.840.113549.1.1.8"), hash_id(mgf)))
    if salt != 20:
        parts += context(2, integer(salt))
    if trailer is not None:
        parts += context(3, integer(trailer))
    return seq(oid("1.2.840.113549.1.1.10"), seq(parts))


def der_read(data, offset=0):
    """(tag, body, where the next begins)"""
    tag, size, start = data[offset], data[offset + 1], offset + 2
    if size > 0x80:
        start += size & 0x7f
        size = int.from_bytes(data[offset + 2:start], "big")
    return tag, data[start:start + size], start + size


def der_numbers(pkcs8):
    """The INTEGERs of an RSAPrivateKey inside PKCS #8."""
    body = der_read(pkcs8)[1]
    offset = der_read(body, der_read(body)[2])[2]
    key = der_read(der_read(body, offset)[1])[1]
    numbers, offset = [], 0
    while offset < len(key):
        _, value, offset = der_read(key, offset)
        numbers.append(int.from_bytes(value, "big"))
    return numbers


POOL = os.environ.get("CERT_POOL") or "/tmp/gateway-cert-pool-%d" % os.getuid()
pool = {}


def key(what):
    """"NAME" (P-256), "P-384:NAME", "rsa2048:NAME", "ed25519:NAME"."""
    if what not in pool:
        kind, colon, seed = what.partition(":")
        if not colon:
            pool[what] = EcKey(what)
        elif kind in CURVE_NUMBERS:
            pool[what] = EcKey(seed, kind)
        else:
            path, data = pooled(kind, seed)
            pool[what] = (EdKey(path, data) if kind == "ed25519"
                          else RsaKey(data))
    return pool[what]


def pooled(kind, seed):
    """A key of the folder, made by whoever first asks for it."""
    os.makedirs(POOL, mode=0o700, exist_ok=True)
    assert os.stat(POOL).st_uid == os.getuid(), POOL + " is not ours"
    path = os.path.join(POOL, "%s-%s.pem" % (kind, seed))
    with open(os.path.join(POOL, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(path):
            how = (["ED25519"] if kind == "ed25519" else
                   ["RSA", "-pkeyopt", "rsa_keygen_bits:" + kind[3:]])
            subprocess.run(["openssl", "genpkey", "-algorithm", *how, "-out",
                            path + ".new"], check=True, capture_output=True)
            os.rename(path + ".new", path)
    with open(path) as f:
        return path, unpem(f.read())[0]


# ---- extensions ------------------------------------------------------------

EXTENSIONS = {"bc": "2.5.29.19", "ku": "2.5.29.15", "eku": "2.5.29.37",
              "san": "2.5.29.17", "ian": "2.5.29.18", "nc": "2.5.29.30",
              "ski": "2.5.29.14", "aki": "2.5.29.35", "policies": "2.5.29.32",
              "policy_constraints": "2.5.29.36", "inhibit": "2.5.29.54",
              "mappings": "2.5.29.33",
              "crldp": "2.5.29.31", "aia": "1.3.6.1.5.5.7.1.1",
              "unknown": "1.3.6.1.4.1.99999.1", "number": "2.5.29.20",
              "delta": "2.5.29.27", "idp": "2.5.29.28", "reason": "2.5.29.21",
              "cert_issuer": "2.5.29.29"}
USAGES = {"clientAuth": "1.3.6.1.5.5.7.3.2", "serverAuth": "1.3.6.1.5.5.7.3.1",
          "any": "2.5.29.37.0", "codeSigning": "1.3.6.1.5.5.7.3.3"}
USE = {"digitalSignature": 0, "nonRepudiation": 1, "keyEncipherment": 2,
       "dataEncipherment": 3, "keyAgreement": 4, "keyCertSign": 5,
       "cRLSign": 6}


def ext(kind, value, critical=False):
    return seq(oid(EXTENSIONS.get(kind, kind)),
               boolean(True) if critical else b"", octets(value))


def bc(ca=None, path=None, critical=True):
    """basicConstraints; ca=None writes what DER wants for false: nothing."""
    return ext("bc", seq(b"" if ca is None else boolean(ca),
                         b"" if path is None else integer(path)), critical)


def ku(*uses, critical=True):
    return ext("ku", flags(*[USE[u] for u in uses]), critical)


def eku(*uses, critical=False):
    return ext("eku", seq(*[oid(USAGES.get(u, u)) for u in uses]), critical)


def general(kind, value):
    """A GeneralName: "dns", "email", "uri", "ip", "dir", "rid", "other"."""
    if kind == "dir":
        return context(4, value)
    if kind == "other":
        return context(0, oid("1.3.6.1.4.1.99999.2"), context(0, utf8(value)))
    if kind == "rid":
        return implicit(8, oid(value)[2:])
    if kind == "ip":
        return implicit(7, address(value))
    number = {"email": 1, "dns": 2, "uri": 6}[kind]
    return implicit(number, value if isinstance(value, bytes)
                    else value.encode())


def address(text):
    """"192.0.2.0/24" or "2001:db8::/32" or one address, as bytes."""
    if isinstance(text, bytes):
        return text
    if "/" not in text:
        return ipaddress.ip_address(text).packed
    net = ipaddress.ip_network(text)
    return net.network_address.packed + net.netmask.packed


def san(*names, critical=False):
    """Pairs of general()."""
    return ext("san", seq(*[general(k, v) for k, v in names]), critical)


def subtree(pair, minimum=None, maximum=None):
    return seq(general(*pair),
               b"" if minimum is None else implicit(0, integer(minimum)[2:]),
               b"" if maximum is None else implicit(1, integer(maximum)[2:]))


def nc(permit=(), exclude=(), critical=True, raw=None):
    """Name constraints; a member in bytes is a GeneralSubtree already."""
    def trees(n, pairs):
        if not pairs:
            return b""
        return context(n, *[p if isinstance(p, bytes) else subtree(p)
                            for p in pairs])
    value = raw if raw is not None else seq(trees(0, permit),
                                            trees(1, exclude))
    return ext("nc", value, critical)


def ski(value):
    return ext("ski", octets(value))


def aki(value=None, issuer=None, serial=None):
    return ext("aki", seq(
        b"" if value is None else implicit(0, value),
        b"" if issuer is None else context(1, general("dir", issuer)),
        b"" if serial is None else implicit(2, integer(serial)[2:])))


# ---- certificates ----------------------------------------------------------

class Cert:
    """A certificate: `der`, its `key`, its `name`.

    issuer    a Cert, or None for a self-signed one
    exts      {"bc": bytes or None (left out), ...} over the usual ones of a CA
              or a client; more=[...] follow them; order="..." sorts them
    anything  whose name is a field of TBSCertificate takes bytes instead
    spoil_tbs, spoil  change the signed bytes, or all bytes at the very end
    """

    serials = 1000

    def __init__(self, subject, issuer=None, ca=False, keyed=None, alg=None,
                 signer=None, exts=None, more=(), order=None, days=(-1, 30),
                 raw_exts=None, **fields):
        self.subject = (name(("CN", subject)) if isinstance(subject, str)
                        else subject)
        label = subject if isinstance(subject, str) else repr(subject)
        self.key = key(keyed) if isinstance(keyed, str) else (
            keyed or key("cert " + label))
        self.issuer = issuer
        self.ski = hashlib.sha1(self.key.spki()).digest()
        self.signer = key(signer) if isinstance(signer, str) else (
            signer or (issuer.key if issuer else self.key))
        self.alg = alg or self.signer.default
        self.ca, self.days = ca, days
        Cert.serials += 1
        self.serial = Cert.serials
        if isinstance(fields.get("serial"), int):
            self.serial = fields.pop("serial")
        self.exts, self.more, self.order = dict(exts or {}), more, order
        self.raw_exts, self.fields = raw_exts, fields
        self.der = self.make()

    def usual(self):
        """The extensions that a good certificate of its kind has."""
        out = {}
        if self.ca:
            out["bc"] = bc(True)
            out["ku"] = ku("keyCertSign", "cRLSign")
        else:
            out["bc"] = bc()
            out["ku"] = ku("digitalSignature")
            out["eku"] = eku("clientAuth")
        out["ski"] = ski(self.ski)
        if self.issuer:
            out["aki"] = aki(self.issuer.ski)
        out.update(self.exts)
        if self.order:
            out = {k: out[k] for k in self.order.split()}
        return [e for e in out.values() if e is not None]

    def extensions(self):
        if self.raw_exts is not None:
            return self.raw_exts
        return context(3, seq(*self.usual(), *self.more))

    def make(self):
        f = self.fields
        algorithm = self.signer.algorithm(self.alg)
        tbs = seq(
            f.get("version", context(0, integer(2))),
            f.get("serial", integer(self.serial)),
            f.get("inner", algorithm),
            f.get("issuer_name", (self.issuer or self).subject),
            seq(f.get("not_before", at(self.days[0] * DAY)),
                f.get("not_after", at(self.days[1] * DAY))),
            self.subject,
            f.get("spki", self.key.spki()),
            f.get("unique", b""),
            self.extensions())
        tbs = f.get("spoil_tbs", lambda x: x)(tbs)
        sig = f.get("spoil_signature", lambda x: x)(
            self.signer.sign(self.alg, tbs))
        whole = seq(tbs, f.get("outer", algorithm),
                    f.get("signature", bits(sig)))
        return f.get("spoil", lambda x: x)(whole)


def root(subject="root", **keys):
    return Cert(subject, None, ca=True, **keys)


def inter(subject, issuer, **keys):
    return Cert(subject, issuer, ca=True, **keys)


def leaf(issuer, subject="client", **keys):
    return Cert(subject, issuer, **keys)


# ---- CRLs ------------------------------------------------------------------

class Crl:
    """A CRL of `issuer` (a Cert) that names the serials of `revoked`.

    `days` are thisUpdate and nextUpdate; `next_update=b""` leaves it out.
    `entries` are more revokedCertificates as bytes."""

    def __init__(self, issuer, revoked=(), number=1, days=(-1, 7), alg=None,
                 signer=None, exts=(), more=(), entries=(), **fields):
        signer = key(signer) if isinstance(signer, str) else (
            signer or issuer.key)
        alg = alg or signer.default
        algorithm = signer.algorithm(alg)
        rows = [self.entry(c.serial if isinstance(c, Cert) else c)
                for c in revoked] + list(entries)
        extensions = dict({
            "aki": aki(issuer.ski),
            "number": None if number is None else
            ext("number", integer(number))}, **dict(exts))
        extensions = [e for e in extensions.values() if e] + list(more)
        tbs = seq(
            fields.get("version", integer(1)),
            fields.get("inner", algorithm),
            fields.get("issuer_name", issuer.subject),
            fields.get("this_update", at(days[0] * DAY)),
            fields.get("next_update", at(days[1] * DAY)),
            seq(*rows) if rows else b"",
            context(0, seq(*extensions)) if extensions else b"")
        sig = fields.get("spoil_signature", lambda x: x)(signer.sign(alg, tbs))
        self.der = fields.get("spoil", lambda x: x)(
            seq(tbs, fields.get("outer", algorithm), bits(sig)))

    @staticmethod
    def entry(serial, *extensions, when=None):
        return seq(integer(serial), when or at(-3600),
                   seq(*extensions) if extensions else b"")


# ---- PEM -------------------------------------------------------------------

def pem(data, what="CERTIFICATE"):
    text = base64.b64encode(data).decode()
    return "-----BEGIN %s-----\n%s\n-----END %s-----\n" % (
        what, "\n".join(text[i:i + 64] for i in range(0, len(text), 64)), what)


def unpem(text):
    """The DER of every block."""
    return [base64.b64decode(body) for body in re.findall(
        r"-----BEGIN [A-Z ]+-----([^-]*)-----END", text)]


def chain_pem(certs):
    return "".join(pem(c.der) for c in certs)


def key_pem(some_key):
    return pem(some_key.pkcs8(), "PRIVATE KEY")
