"""The table of certificate cases: what a client presents, and the verdict.

Written from the rules (RFC 5280 4, 6 and 7, RFC 4055, 5756, 8410, X509-SVID,
and what the manual says beyond them), each rule from both sides.

    t.ok(name, anchors, chain, ...)        must be accepted
    t.no(name, words, anchors, chain, ...) must be refused, for this reason

`words` is a regular expression that the gateway's sentence must match.  The
chain is the leaf first, then whatever else is presented, in that order.  CRLs,
eku= and depth= are options of the listener.  load=True: the anchors or CRLs
themselves are refused when they are read.  tls=False: no TLS library that we
have can be made to present it, so that only `certs doctor` sees the case.
"""

import certgen as g
from certgen import (Cert, Crl, DAY, bc, bits, context, der, eku, ext,
                     general, implicit, inter, integer, ku, leaf, name, nc,
                     octets, oid, root, san, seq, ski, subtree)

NO_PATH = "no CA of client_ca issued it|CA of its issuer's name"
SIGNATURE = "signature"
NAMES = "name constraint|constrain"
MALFORMED = "malformed"


class Case:
    def __init__(self, title, words, anchors, chain, crls=(), eku=None,
                 depth=None, load=False, tls=True, route="/ok"):
        self.name, self.words = title, words  # words is None: accepted
        self.anchors, self.chain, self.crls = anchors, chain, crls
        self.eku, self.depth, self.load = eku, depth, load
        self.tls, self.route = tls and not load, route


class Table:
    def __init__(self):
        self.cases = []

    def ok(self, title, anchors, chain, **keys):
        self.cases.append(Case(title, None, anchors, chain, **keys))

    def no(self, title, words, anchors, chain, **keys):
        self.cases.append(Case(title, words, anchors, chain, **keys))

    def pair(self, title, words, anchors, good, bad, **keys):
        """Both sides of one rule."""
        self.ok(title + ": kept", anchors, good, **keys)
        self.no(title + ": broken", words, anchors, bad, **keys)


ROOT = root("root")
MID = inter("middle", ROOT)
A = [ROOT]


def client(**keys):
    return [leaf(MID, **keys), MID]


# ---- path building ---------------------------------------------------------

def paths(t):
    two = inter("two", MID)
    deep = leaf(two)
    stranger = root("stranger")
    strange = inter("strange middle", stranger)
    t.ok("leaf under the anchor", A, [leaf(ROOT)])
    t.ok("one intermediate", A, client())
    t.ok("two intermediates", A, [deep, two, MID])
    t.ok("two intermediates out of order", A, [deep, MID, two])
    t.ok("the anchor is presented too", A, client() + [ROOT])
    t.ok("the anchor comes before the intermediate", A,
         [leaf(MID), ROOT, MID])
    t.ok("an extra certificate behind", A, client() + [stranger])
    t.ok("an extra certificate between", A, [leaf(MID), strange, MID])
    t.ok("an intermediate twice", A, [deep, two, two, MID, MID])
    again = leaf(MID)
    t.ok("the leaf twice", A, [again, again, MID])
    t.ok("another client's leaf behind", A,
         client() + [leaf(MID, "other client")])
    t.no("the intermediate is missing", NO_PATH, A, [leaf(MID)])
    t.no("the upper intermediate is missing", NO_PATH, A, [deep, two])
    t.no("a CA that nobody trusts", NO_PATH, A, [leaf(stranger), stranger])
    t.no("a strange intermediate", NO_PATH, A,
         [leaf(strange), strange, stranger])
    t.no("a self-signed leaf", NO_PATH, A, [Cert("lonely")])
    t.ok("an intermediate is the anchor", [MID], [leaf(MID)])
    t.ok("an intermediate is the anchor, presented", [MID], client())
    t.ok("an intermediate is the anchor, all presented", [MID],
         client() + [ROOT])
    t.no("an intermediate is the anchor, a sister is not", NO_PATH, [MID],
         [leaf(inter("sister", ROOT)), inter("sister", ROOT), ROOT])
    t.ok("several anchors", [stranger, ROOT], client())
    pinned = Cert("pinned")
    t.no("a self-signed leaf as its own anchor", "CA|anchor", [pinned],
         [pinned], load=True)
    t.no("the anchor as a client", "CA|anchor", A, [ROOT])
    t.no("an intermediate as a client", "CA", A, [MID])


def clones(t):
    """Name, key id, even signature of an anchor, but another key."""
    clone = Cert("root", ca=True, keyed="a thief",
                 exts={"ski": ski(ROOT.ski)}, serial=ROOT.serial)
    body = g.der_read(ROOT.der)[1]
    end = g.der_read(body, g.der_read(body, 0)[2])[2]
    signature = body[end:]
    copied = Cert("root", ca=True, keyed="a thief", signature=signature,
                  exts={"ski": ski(ROOT.ski)}, serial=ROOT.serial)
    t.no("a clone of the anchor as a client", "CA|anchor|signature", A,
         [clone])
    t.no("a clone with the anchor's signature bytes", "CA|anchor|signature",
         A, [copied])
    for what, fake in (("clone", clone), ("clone with signature", copied)):
        client_of = Cert("client", ROOT, signer=fake.key)
        t.no("a leaf by the " + what, "signature|anchor", A, [client_of])
        t.no("a leaf by the %s, presented" % what, "signature|anchor", A,
             [client_of, fake])
    dressed = Cert("root", keyed="a thief", signature=signature,
                   exts={"ski": ski(ROOT.ski), "aki": g.aki(ROOT.ski)},
                   serial=ROOT.serial)
    t.no("a leaf dressed as the anchor", "anchor|signature|issuer", A,
         [dressed])
    mid = Cert("middle", ROOT, ca=True, keyed="a thief", signer="a thief",
               exts={"ski": ski(MID.ski)})
    t.no("a clone of the intermediate", "signature|anchor", A,
         [Cert("client", mid), mid])
    t.ok("a clone of the intermediate beside the real one", A,
         [leaf(MID), mid, MID])


def crosses(t):
    other = root("other root")
    key = "cross"
    by_root = inter("cross", ROOT, keyed=key)
    by_other = inter("cross", other, keyed=key)
    late = inter("cross", ROOT, keyed=key, days=(-9, -1))
    end = leaf(by_root)
    for order, mids in (("one", [by_root, by_other]),
                        ("two", [by_other, by_root])):
        t.ok("cross-signed, both trusted, order " + order, [ROOT, other],
             [end] + mids)
        t.ok("cross-signed, first trusted, order " + order, [ROOT],
             [end] + mids)
        t.ok("cross-signed, second trusted, order " + order, [other],
             [end] + mids)
    for order, mids in (("one", [late, by_other]), ("two", [by_other, late])):
        t.ok("cross-signed, one expired, order " + order, [ROOT, other],
             [end] + mids)
        t.no("cross-signed, only the expired one trusted, order " + order,
             "expired|" + NO_PATH, A, [end] + mids)
    short = inter("cross", ROOT, keyed=key,
                  exts={"nc": nc(permit=[("uri", "other.example")])})
    uri = leaf(by_root, exts={"san": san(("uri", "https://a.example/x"))})
    t.ok("cross-signed, one constrained", [ROOT, other],
         [uri, short, by_other])
    t.no("cross-signed, the constrained one alone", NAMES, [ROOT, other],
         [uri, short])


def loops(t):
    a_key, b_key = g.key("loop a"), g.key("loop b")
    a_self, b_self = root("loop a", keyed=a_key), root("loop b", keyed=b_key)
    a_by_b = inter("loop a", b_self, keyed=a_key)
    b_by_a = inter("loop b", a_self, keyed=b_key)
    end = leaf(a_self)
    t.no("a loop", NO_PATH, A, [end, a_by_b, b_by_a])
    t.ok("a loop with a way out at its first", A,
         [end, a_by_b, b_by_a, inter("loop a", ROOT, keyed=a_key)])
    t.ok("a loop with a way out at its second", A,
         [end, a_by_b, b_by_a, inter("loop b", ROOT, keyed=b_key)])
    t.no("a leaf and its untrusted root", NO_PATH, A, [end, a_self])


def rollover(t):
    old = root("rolling", keyed="old key")
    new = root("rolling", keyed="new key")
    new_with_old = Cert("rolling", old, ca=True, keyed="new key")
    old_with_new = Cert("rolling", new, ca=True, keyed="old key")
    t.ok("rollover: new key with old", [old], [leaf(new), new_with_old])
    t.ok("rollover: old key with new", [new], [leaf(old), old_with_new])
    t.no("rollover: new key alone", SIGNATURE + "|" + NO_PATH, [old],
         [leaf(new), new])
    t.ok("rollover: both anchors, leaf of the old", [old, new], [leaf(old)])
    t.ok("rollover: both anchors, leaf of the new", [new, old], [leaf(new)])


def same_names(t):
    bare = {"ski": None, "aki": None}
    one = root("twin", keyed="twin 1", exts=bare)
    two = root("twin", keyed="twin 2", exts=bare)
    for i, twin in enumerate((one, two), 1):
        t.ok("two anchors of one name without key ids, leaf of %d" % i,
             [one, two], [leaf(twin, exts={"aki": None})])
    t.no("an anchor of the same name without key ids",
         SIGNATURE + "|" + NO_PATH, [one], [leaf(two, exts={"aki": None})])
    mids = [inter("same", ROOT, keyed="same %d" % i,
                  exts={"ski": None}) for i in range(8)]
    end = leaf(mids[7], exts={"aki": None})
    t.ok("the last of seven issuers of one name", A, [end] + mids[1:])
    t.no("none of seven issuers of one name", SIGNATURE + "|" + NO_PATH, A,
         [end] + mids[:7])
    many = [root("crowd", keyed="crowd %d" % i) for i in range(40)]
    t.ok("forty anchors of one name, with key ids", many, [leaf(many[-1])])
    t.ok("twenty anchors of one name, no key id in the leaf", many[:20],
         [leaf(many[19], exts={"aki": None})])
    t.ok("a wrong authority key id, a right signature", A,
         [leaf(MID, exts={"aki": g.aki(b"\7" * 20)}), MID])
    t.ok("authority key id by issuer and serial", A,
         [leaf(MID, exts={"aki": g.aki(None, name(("CN", "root")),
                                       MID.serial)}), MID])
    t.ok("without key ids", A, [leaf(inter("plain", ROOT, exts=bare),
                                     exts=bare),
                                inter("plain", ROOT, exts=bare)])


def names_match(t):
    """RFC 5280 7.1: the issuer's name, written another way."""
    def ca(*parts, **keys):
        return Cert(name(*parts, **keys), ca=True, keyed="spelled")

    def end(issuer, *parts, **keys):
        return [Cert("client", issuer, issuer_name=name(*parts, **keys))]

    written = (("O", "Gate Way"), ("CN", "Spelled CA"))
    anchor = ca(*written)
    same = [
        ("as PrintableString", end(anchor, *written, string=g.printable)),
        ("in other case", end(anchor, ("O", "GATE way"),
                              ("CN", "spelled ca"))),
        ("with more blanks", end(anchor, ("O", " Gate   Way  "),
                                 ("CN", "Spelled CA "))),
        ("as PrintableString, other case and blanks",
         end(anchor, ("O", "gate  way"), ("CN", " spelled CA"),
             string=g.printable))]
    for how, chain in same:
        t.ok("issuer " + how, [anchor], chain)
    other = [
        ("without its O", end(anchor, ("CN", "Spelled CA"))),
        ("with one RDN more", end(anchor, *written, ("OU", "x"))),
        ("in other order", end(anchor, *reversed(written))),
        ("as one multi-valued RDN", end(anchor, list(written))),
        ("without the blank", end(anchor, ("O", "GateWay"),
                                  ("CN", "Spelled CA"))),
        ("with another type", end(anchor, ("O", "Gate Way"),
                                  ("OU", "Spelled CA"))),
        ("empty", end(anchor))]
    for how, chain in other:
        t.no("issuer " + how, "issuer|" + NO_PATH, [anchor], chain)
    multi = ca([("CN", "Multi"), ("O", "Gate")], ("C", "DE"))
    t.ok("multi-valued RDN in the issuer", [multi],
         end(multi, [("O", "Gate"), ("CN", "Multi")], ("C", "DE")))
    t.ok("multi-valued RDN in the subject", A,
         client(subject=name([("CN", "x"), ("OU", "ops"), ("O", "y")])))
    dc = ca(("DC", "Example"), ("DC", "org"))
    t.ok("domain components in other case", [dc],
         end(dc, ("DC", "eXample"), ("DC", "ORG")))
    umlaut = ca(("CN", "Prüfstelle"))
    t.ok("UTF-8 in the issuer", [umlaut], end(umlaut, ("CN", "Prüfstelle")))
    t.no("other UTF-8 in the issuer", "issuer|" + NO_PATH, [umlaut],
         end(umlaut, ("CN", "Prufstelle")))
    nameless = Cert(name(), ROOT, ca=True, keyed="nameless",
                    exts={"san": san(("dns", "ca.example"), critical=True)})
    t.no("a CA without a name", "name|subject|issuer", A,
         [leaf(nameless), nameless])


def amounts(t):
    others = [root("unrelated %d" % i) for i in range(12)]
    t.ok("nine certificates, seven unrelated", A, client() + others[:7])
    t.no("ten certificates", "too long|too many", A,
         client() + others[:8])
    t.no("fourteen certificates", "too long|too many", A,
         client() + others)
    chain = [inter("step 0", ROOT)]
    for i in range(1, 9):
        chain.insert(0, inter("step %d" % i, chain[0]))
    t.ok("eight intermediates in the path", A,
         [leaf(chain[1])] + chain[1:])
    t.ok("eight intermediates, shuffled", A,
         [leaf(chain[1])] + chain[1::2] + chain[2::2])
    t.no("nine intermediates in the path", "too long|too many", A,
         [leaf(chain[0])] + chain)
    depth = "depth|long|more than|far"
    two = inter("two", MID)
    t.ok("depth 1, no intermediate", A, [leaf(ROOT)], depth=1)
    t.no("depth 1, one intermediate", depth, A, client(), depth=1)
    t.ok("depth 2, one intermediate", A, client(), depth=2)
    t.no("depth 2, two intermediates", depth, A, [leaf(two), two, MID],
         depth=2)
    work(t)
    big = ext("unknown", octets(b"x" * 14000))
    t.ok("a certificate of 14 KiB", A, client(more=[big]))
    bigger = ext("unknown", octets(b"x" * 16400))
    t.no("a certificate of more than 16 KiB", "16|large|long|big|bytes", A,
         client(more=[bigger]), tls=False)


def work(t):
    """Chains that a search without memory would walk for minutes."""
    one = g.key("one key")
    for what, top in (("that ends nowhere", "circle"), ("of the anchor's name",
                                                        "root")):
        same = root(top, keyed=one)
        ring = [Cert(top, same, ca=True, keyed=one) for _ in range(8)]
        t.no("eight CAs of one name and key " + what, "signature|" + NO_PATH,
             A, [leaf(same)] + ring)
    both = [root("a", keyed="work a"), root("b", keyed="work b")]
    ring = [Cert(x, y, ca=True, keyed=x_key) for _ in range(2)
            for x, y, x_key in (("a", both[1], "work a"),
                                ("b", both[0], "work b"),
                                ("a", both[0], "work a"),
                                ("b", both[1], "work b"))]
    t.no("eight CAs that cross-sign each other", NO_PATH, A,
         [leaf(both[0])] + ring)


# ---- signatures ------------------------------------------------------------

def flip(data):
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


def signatures(t):
    t.no("a spoilt signature on the leaf", SIGNATURE, A,
         client(spoil_signature=flip))
    spoilt = inter("middle", ROOT, spoil_signature=flip)
    t.no("a spoilt signature on the intermediate", SIGNATURE, A,
         [leaf(MID), spoilt])
    t.ok("a spoilt signature on the anchor itself",
         [root("marred", spoil_signature=flip)], [leaf(root("marred"))])
    t.no("a changed name under a good signature", SIGNATURE, A,
         client(spoil=lambda d: d.replace(b"client", b"Client")))
    t.no("signed by another key", SIGNATURE, A, client(signer="another key"))
    for n, what in ((0, "zero"), (-1, "negative")):
        t.no("an ECDSA signature with r %s" % what, SIGNATURE + "|" +
             MALFORMED, A, client(spoil_signature=lambda s, n=n: seq(
                 integer(n), integer(5))))
    t.no("bytes behind the ECDSA signature", SIGNATURE + "|" + MALFORMED, A,
         client(spoil_signature=lambda s: s + b"\0"))
    t.no("an empty signature", SIGNATURE + "|" + MALFORMED, A,
         client(spoil_signature=lambda s: b""))
    t.no("a signature that is not whole bytes", SIGNATURE + "|" + MALFORMED,
         A, client(signature=bits(b"\x30\x06\2\1\4\2\1\4", 1)))

    rsa = root("rsa root", keyed="rsa2048:a")
    ra = [rsa]
    for digest in ("sha256", "sha384", "sha512"):
        t.ok("RSA with " + digest, ra, [leaf(rsa, alg=digest)])
        t.ok("RSA-PSS with " + digest, ra, [leaf(rsa, alg="pss-" + digest)])
    for digest in ("sha1", "md5"):
        word = "SHA-?1" if digest == "sha1" else "MD5"
        t.no("RSA with %s on the leaf" % digest, word + "|algorithm", ra,
             [leaf(rsa, alg=digest)])
        old = inter("old middle", rsa, alg=digest)
        t.no("RSA with %s on the intermediate" % digest, word + "|algorithm",
             ra, [leaf(old), old])
    t.ok("SHA-1 on the anchor itself",
         [root("sha1 root", keyed="rsa2048:a", alg="sha1")],
         [leaf(root("sha1 root", keyed="rsa2048:a"))])
    t.no("ECDSA with SHA-1", "SHA-?1|algorithm", A, client(alg="sha1"))
    t.no("RSA-PSS with SHA-1", "SHA-?1|algorithm|PSS", ra,
         [leaf(rsa, alg="pss-sha1-20")])
    t.no("RSA-PSS with SHA-256 and the mask by SHA-1",
         "SHA-?1|algorithm|PSS|mask", ra,
         [leaf(rsa, alg="pss-sha256-32-sha1")])
    pss_odd(t, rsa)
    rsa_parameters(t, rsa)
    only = root("pss root", keyed="rsa2048:a", alg="pss-sha256",
                spki=rsa.key.spki(seq(oid("1.2.840.113549.1.1.10"))))
    t.ok("a CA key for RSA-PSS alone", [only], [leaf(only, alg="pss-sha256")])
    t.no("a CA key for RSA-PSS alone, a PKCS #1 signature", SIGNATURE, [only],
         [leaf(only, alg="sha256")])
    t.no("a spoilt RSA signature", SIGNATURE, ra,
         [leaf(rsa, spoil_signature=flip)])
    t.no("a spoilt RSA-PSS signature", SIGNATURE, ra,
         [leaf(rsa, alg="pss-sha256", spoil_signature=flip)])
    t.no("an RSA algorithm under an EC key", SIGNATURE + "|algorithm", A,
         client(inner=seq(oid(g.RSA["sha256"]), g.NULL),
                outer=seq(oid(g.RSA["sha256"]), g.NULL)))
    t.no("an unknown algorithm", "algorithm", A,
         client(inner=seq(oid("1.3.6.1.4.1.99999.7")),
                outer=seq(oid("1.3.6.1.4.1.99999.7"))))
    t.no("another algorithm outside than inside", "algorithm|differ", A,
         client(outer=seq(oid(g.ECDSA["sha384"]))))
    t.no("ECDSA with NULL parameters", "algorithm|parameter", A,
         client(inner=seq(oid(g.ECDSA["sha256"]), g.NULL),
                outer=seq(oid(g.ECDSA["sha256"]), g.NULL)))


def pss_odd(t, rsa):
    """RFC 4055 3.1: what the parameters may and may not say."""
    def signed(alg, algorithm):
        return [leaf(rsa, alg=alg, inner=algorithm, outer=algorithm)]

    t.ok("RSA-PSS with a salt of 20", [rsa], [leaf(rsa, alg="pss-sha256-20")])
    t.ok("RSA-PSS with a salt of 48 for SHA-256", [rsa],
         [leaf(rsa, alg="pss-sha256-48")])
    t.no("RSA-PSS that names another salt", SIGNATURE + "|PSS", [rsa],
         signed("pss-sha256-32", g.pss_algorithm("sha256", 33, "sha256")))
    t.no("RSA-PSS without parameters", "algorithm|PSS|parameter|missing",
         [rsa], signed("pss-sha256", seq(oid("1.2.840.113549.1.1.10"))))
    t.no("RSA-PSS with trailer 2", "algorithm|PSS|trailer", [rsa],
         signed("pss-sha256", g.pss_algorithm("sha256", 32, "sha256", 2)))
    t.no("RSA-PSS with a negative salt", "PSS|" + MALFORMED, [rsa],
         signed("pss-sha256", g.pss_algorithm("sha256", -1, "sha256")))
    t.no("RSA-PSS with a huge salt", "PSS|" + MALFORMED, [rsa],
         signed("pss-sha256", g.pss_algorithm("sha256", 1 << 40, "sha256")))
    t.no("RSA-PSS parameters with a field too many", "PSS|" + MALFORMED, [rsa],
         signed("pss-sha256", seq(
             oid("1.2.840.113549.1.1.10"),
             seq(g.der_read(g.der_read(g.pss_algorithm(
                 "sha256", 32, "sha256"))[1], 11)[1], context(4, g.NULL)))))
    t.no("RSA-PSS by the bytes of PKCS #1", SIGNATURE, [rsa],
         signed("sha256", g.pss_algorithm("sha256", 32, "sha256")))


def rsa_parameters(t, rsa):
    bare = seq(oid(g.RSA["sha256"]))
    t.ok("RSA without parameters (RFC 4055 5)", [rsa],
         [leaf(rsa, inner=bare, outer=bare)])
    t.no("RSA with odd parameters", "algorithm|parameter", [rsa],
         [leaf(rsa, inner=seq(oid(g.RSA["sha256"]), integer(1)),
               outer=seq(oid(g.RSA["sha256"]), integer(1)))])
    even = key_of(rsa.key, e=65536)
    t.no("an even RSA exponent", "RSA|exponent|key", [rsa],
         [leaf(rsa, spki=even)], tls=False)
    t.no("an RSA exponent of one", "RSA|exponent|key", [rsa],
         [leaf(rsa, spki=key_of(rsa.key, e=1))], tls=False)
    t.no("a negative RSA modulus", "RSA|modulus|key|negative", [rsa],
         [leaf(rsa, spki=key_of(rsa.key, n=-5 << 2050))], tls=False)


def key_of(rsa, n=None, e=None):
    return seq(seq(oid("1.2.840.113549.1.1.1"), g.NULL),
               bits(seq(integer(n or rsa.n), integer(e or rsa.e))))


def keys(t):
    for which in ("P-256", "P-384", "P-521"):
        for digest in ("sha256", "sha384", "sha512"):
            ca = root("ec root " + which, keyed=which + ":ca")
            t.ok("%s with %s" % (which, digest), [ca],
                 [leaf(ca, alg=digest, keyed=which + ":leaf")])
    ed = root("ed root", keyed="ed25519:a")
    t.ok("Ed25519 CA, EC leaf", [ed], [leaf(ed)])
    t.ok("Ed25519 leaf", A, client(keyed="ed25519:b"))
    t.no("a spoilt Ed25519 signature", SIGNATURE, [ed],
         [leaf(ed, spoil_signature=flip)])
    null = seq(oid("1.3.101.112"), g.NULL)
    t.no("Ed25519 with NULL parameters", "algorithm|parameter", [ed],
         [leaf(ed, inner=null, outer=null)])
    weak = "small|weak|bits|key|curve|P-224"
    t.ok("an RSA leaf of 2048 bits", A, client(keyed="rsa2048:b"))
    t.ok("an RSA leaf of 3072 bits", A, client(keyed="rsa3072:a"))
    t.no("an RSA leaf of 1024 bits", weak, A, client(keyed="rsa1024:a"))
    small = inter("small", ROOT, keyed="rsa1024:a")
    t.no("an RSA intermediate of 1024 bits", weak, A, [leaf(small), small])
    tiny = root("tiny", keyed="rsa1024:a")
    t.no("an RSA anchor of 1024 bits", weak, [tiny], [leaf(tiny)], load=True)
    t.no("a P-224 leaf", weak, A, client(keyed="P-224:a"), tls=False)
    mid224 = inter("mid224", ROOT, keyed="P-224:b")
    t.no("a P-224 intermediate", weak, A, [leaf(mid224), mid224])
    ec = g.key("off the curve")
    off = seq(seq(oid("1.2.840.10045.2.1"), oid(ec.curve.oid)),
              bits(ec.point[:-1] + bytes([ec.point[-1] ^ 1])))
    t.no("a point that is not on the curve", "key|curve|point", A,
         client(spki=off), tls=False)
    for what, spki in (
            ("explicit curve parameters", seq(seq(
                oid("1.2.840.10045.2.1"), seq(integer(1), seq())),
                bits(ec.point))),
            ("an X25519 key", seq(seq(oid("1.3.101.110")),
                                  bits(b"\t" + b"\0" * 31)))):
        t.no(what, "key|curve|algorithm", A, client(spki=spki), tls=False)
    t.ok("an RSA intermediate of 4096 bits", A, with_ca(
        {}, keyed="rsa4096:a"))
    dsa = seq(seq(oid("1.2.840.10040.4.1")), bits(integer(1 << 1024)))
    t.no("a DSA key", "key|algorithm", A, client(spki=dsa), tls=False)
    zero = seq(seq(oid("1.2.840.10045.2.1"), oid(ec.curve.oid)), bits(b"\0"))
    t.no("the point at infinity", "key|curve|point", A, client(spki=zero),
         tls=False)


# ---- dates -----------------------------------------------------------------

def dates(t):
    t.no("an expired leaf", "expired", A, client(days=(-9, -1)))
    t.no("a leaf not valid yet", "not yet|not valid yet", A,
         client(days=(1, 9)))
    late = inter("late", ROOT, days=(-9, -1))
    t.no("an expired intermediate", "expired", A, [leaf(late), late])
    early = inter("early", ROOT, days=(1, 9))
    t.no("an intermediate not valid yet", "not yet|not valid yet", A,
         [leaf(early), early])
    gone = root("gone", days=(-9, -1))
    t.no("an expired anchor", "expired", [gone], [leaf(gone)])
    t.no("an expired anchor that is presented", "expired", [gone],
         [leaf(gone), gone])
    soon = root("soon", days=(1, 9))
    t.no("an anchor not valid yet", "not yet|not valid yet", [soon],
         [leaf(soon)])
    renewed = root("gone")
    t.ok("an expired anchor and its renewal", [gone, renewed], [leaf(gone)])
    t.ok("notAfter 99991231235959Z", A,
         client(not_after=g.general_time("99991231235959Z")))
    t.ok("notBefore of 1950", A, client(not_before=g.utc_time(
        "500101000000Z")))
    t.ok("notAfter of 2049 in two digits", A,
         client(not_after=g.utc_time("491231235959Z")))
    t.ok("GeneralizedTime before 2050, which a CA should not write", A,
         client(not_after=g.general_at(9 * DAY)))
    short = inter("short", ROOT, days=(-1, 1))
    t.ok("a leaf that outlives its CA", A, [leaf(short, days=(-9, 9)), short])
    t.no("notAfter of 1950 in two digits", "expired|ends before", A,
         client(not_after=g.utc_time("500101000000Z")))
    t.no("notAfter before notBefore", "expired|not yet|ends before", A,
         client(days=(2, -2)))
    bad = [("without seconds", g.utc_time("4901010000Z")),
           ("with an offset", g.utc_time("490101000000+0100")),
           ("without Z", g.utc_time("490101000000")),
           ("with a fraction", g.general_time("20550101000000.5Z")),
           ("general, without seconds", g.general_time("205501010000Z")),
           ("with month 13", g.utc_time("491301000000Z")),
           ("with February 30", g.utc_time("490230000000Z")),
           ("with hour 24", g.utc_time("490101240000Z")),
           ("with a letter", g.utc_time("4901010000O0Z")),
           ("empty", g.utc_time("")),
           ("as a string", g.utf8("490101000000Z")),
           ("in BER length", b"\x17\x81\x0d490101000000Z")]
    for how, value in bad:
        t.no("a date " + how, "date|time|valid|" + MALFORMED, A,
             client(not_after=value), tls=how != "as a string")
    t.ok("February 29 of a leap year", A, client(not_after=g.utc_time(
        "480229000000Z")))


# ---- basicConstraints and keyUsage -----------------------------------------

def with_ca(exts, **keys):
    """A chain whose intermediate has other extensions."""
    mid = inter("odd middle", ROOT, exts=exts, **keys)
    return [leaf(mid), mid]


def basic(t):
    not_ca = "CA|basic"
    t.no("an intermediate without basicConstraints", not_ca, A,
         with_ca({"bc": None}))
    t.no("an intermediate with CA false", not_ca, A, with_ca({"bc": bc()}))
    t.no("a leaf as the issuer", not_ca, A,
         [Cert("below", leaf(MID)), leaf(MID), MID])
    t.ok("basicConstraints not critical", A,
         with_ca({"bc": bc(True, critical=False)}))
    v1 = inter("v1", ROOT, version=b"", raw_exts=b"")
    t.no("a v1 intermediate", not_ca + "|version", A, [leaf(v1), v1])
    zero = inter("zero", ROOT, exts={"bc": bc(True, 0)})
    one = inter("one", ROOT, exts={"bc": bc(True, 1)})
    under_zero = inter("under", zero)
    t.pair("path length 0", "path ?len", A, [leaf(zero), zero],
           [leaf(under_zero), under_zero, zero])
    below = inter("below one", one)
    lowest = inter("lowest", below)
    t.pair("path length 1", "path ?len", A, [leaf(below), below, one],
           [leaf(lowest), lowest, below, one])
    self_issued = Cert("zero", zero, ca=True, keyed="zero again")
    t.ok("path length 0: a self-issued one is not counted", A,
         [leaf(self_issued), self_issued, zero])
    other = inter("under again", self_issued)
    t.no("path length 0: one below a self-issued one", "path ?len", A,
         [leaf(other), other, self_issued, zero])
    narrow = root("narrow", exts={"bc": bc(True, 0)})
    mid = inter("under narrow", narrow)
    t.pair("path length 0 of the anchor", "path ?len", [narrow],
           [leaf(narrow)], [leaf(mid), mid])
    wide = inter("wide", zero, exts={"bc": bc(True, 5)})
    t.no("path length 5 below path length 0", "path ?len", A,
         [leaf(wide), wide, zero])
    t.ok("path length 127", A, with_ca({"bc": bc(True, 127)}))
    t.no("a negative path length", "path ?len|basic|" + MALFORMED, A,
         with_ca({"bc": bc(True, -1)}))
    t.no("a leaf with CA true", "CA", A,
         client(exts={"bc": bc(True), "ku": ku("digitalSignature")}))
    t.ok("a leaf without basicConstraints", A, client(exts={"bc": None}))
    t.no("a leaf with a path length and no CA", "path ?len|basic", A,
         client(exts={"bc": bc(None, 0)}))


def usage(t):
    t.no("an intermediate without keyCertSign", "keyCertSign|key usage", A,
         with_ca({"ku": ku("cRLSign", "digitalSignature")}))
    t.ok("an intermediate without keyUsage", A, with_ca({"ku": None}))
    mute = root("mute", exts={"ku": ku("cRLSign")})
    t.no("an anchor without keyCertSign", "keyCertSign|key usage", [mute],
         [leaf(mute)], load=True)
    plain = root("plain root", exts={"ku": None})
    t.ok("an anchor without keyUsage", [plain], [leaf(plain)])
    t.ok("a leaf without keyUsage", A, client(exts={"ku": None}))
    t.ok("a leaf with keyUsage not critical", A,
         client(exts={"ku": ku("digitalSignature", critical=False)}))
    t.ok("a leaf with keyEncipherment too", A, client(
        exts={"ku": ku("digitalSignature", "keyEncipherment")}))
    sign = "digitalSignature|key ?usage"
    t.no("a leaf with keyEncipherment alone", sign, A,
         client(exts={"ku": ku("keyEncipherment")}))
    t.no("a leaf with keyAgreement alone", sign, A,
         client(exts={"ku": ku("keyAgreement")}))
    t.no("a leaf with keyCertSign", "keyCertSign|key usage", A,
         client(exts={"ku": ku("digitalSignature", "keyCertSign")}))
    t.no("keyUsage without a bit", sign + "|" + MALFORMED, A,
         client(exts={"ku": ku()}), tls=False)


def extended(t):
    purpose = "clientAuth|extended key usage|EKU"
    t.ok("clientAuth and serverAuth", A,
         client(exts={"eku": eku("serverAuth", "clientAuth")}))
    t.ok("a critical extendedKeyUsage", A,
         client(exts={"eku": eku("clientAuth", critical=True)}))
    for what, value in (("serverAuth alone", eku("serverAuth")),
                        ("no extendedKeyUsage", None),
                        ("codeSigning alone", eku("codeSigning"))):
        t.no(what, purpose, A, client(exts={"eku": value}))
        t.ok(what + ', eku = "any"', A, client(exts={"eku": value}),
             eku="any")
    below = client(exts={"eku": eku("any")})
    t.no("anyExtendedKeyUsage alone", purpose, A, below)
    t.ok('anyExtendedKeyUsage alone, eku = "any"', A, below, eku="any")
    for what, value in (("clientAuth", eku("clientAuth")),
                        ("anyExtendedKeyUsage", eku("any")),
                        ("both", eku("serverAuth", "clientAuth"))):
        t.ok("a CA with " + what, A, with_ca({"eku": value}))
    t.no("a clientAuth leaf under a serverAuth-only CA", purpose, A,
         with_ca({"eku": eku("serverAuth")}))
    high = inter("web", ROOT, exts={"eku": eku("serverAuth")})
    low = inter("web below", high)
    t.no("a serverAuth-only grandparent", purpose, A, [leaf(low), low, high])
    web = root("web root", exts={"eku": eku("serverAuth")})
    t.no("a serverAuth-only anchor", purpose, [web], [leaf(web)])


# ---- name constraints ------------------------------------------------------

def constrained(tree, *names, where="parent", subject="client"):
    """(anchors, chain): a leaf of these names under constraints at `where`."""
    exts = {"nc": tree}
    client_exts = {"san": san(*names)} if names else {}
    if where == "anchor":
        top = root("constrained root", exts=exts)
        mid = inter("free", top)
        return [top], [Cert(subject, mid, exts=client_exts), mid]
    top = inter("constrained", ROOT, exts=exts)
    if where == "parent":
        return A, [Cert(subject, top, exts=client_exts), top]
    mid = inter("free", top)
    return A, [Cert(subject, mid, exts=client_exts), mid, top]


def tree_of(kind, value, excluded):
    return nc(exclude=[(kind, value)]) if excluded else nc(
        permit=[(kind, value)])


# form, constraint, within it, outside of it
FORMS = [
    ("dns", "example.org",
     ["example.org", "a.example.org", "a.b.example.org", "A.EXAMPLE.ORG"],
     ["example.com", "badexample.org", "example.org.evil.com", "org"]),
    ("email", "example.org", ["a@example.org", "a@EXAMPLE.org"],
     ["a@b.example.org", "a@example.com", "example.org@evil.com"]),
    ("email", ".example.org", ["a@b.example.org", "a@c.b.Example.org"],
     ["a@example.org", "a@badexample.org"]),
    ("email", "root@example.org", ["root@example.org", "root@EXAMPLE.ORG"],
     ["boss@example.org", "ROOT@example.org", "root@a.example.org"]),
    ("uri", "example.org",
     ["spiffe://example.org/a", "https://EXAMPLE.org:8443/x",
      "https://user@example.org/?q#f"],
     ["spiffe://a.example.org/a", "spiffe://example.com/a",
      "https://example.org@evil.com/", "https://evil.com/example.org",
      "https://evil.com?@example.org", "https://evil.com#@example.org"]),
    ("uri", ".example.org",
     ["spiffe://a.example.org/x", "https://a.b.example.org"],
     ["spiffe://example.org/x", "https://badexample.org/"]),
    ("ip", "192.0.2.0/24", ["192.0.2.1", "192.0.2.255"],
     ["192.0.3.1", "2001:db8::1"]),
    ("ip", "2001:db8::/32", ["2001:db8::1"], ["2001:db9::1", "192.0.2.1"]),
    ("ip", "192.0.2.7/32", ["192.0.2.7"], ["192.0.2.8"]),
]


def constraints(t):
    for kind, value, inside, outside in FORMS:
        for one in inside:
            what = "%s %s, leaf %s" % (kind, value, one)
            t.ok("permitted " + what,
                 *constrained(tree_of(kind, value, False), (kind, one)))
            t.no("excluded " + what, NAMES,
                 *constrained(tree_of(kind, value, True), (kind, one)))
        for one in outside:
            what = "%s %s, leaf %s" % (kind, value, one)
            t.no("permitted " + what, NAMES,
                 *constrained(tree_of(kind, value, False), (kind, one)))
            t.ok("excluded " + what,
                 *constrained(tree_of(kind, value, True), (kind, one)))
    good = {"dns": "a.example.org", "email": "a@example.org",
            "uri": "spiffe://example.org/a", "ip": "192.0.2.1"}
    bad = {"dns": "a.evil.org", "email": "a@evil.org",
           "uri": "spiffe://evil.org/a", "ip": "198.51.100.1"}
    tree = nc(permit=[("dns", "example.org"), ("email", "example.org"),
                      ("uri", "example.org"), ("ip", "192.0.2.0/24")])
    for where in ("parent", "grandparent", "anchor"):
        for kind in good:
            t.pair("%s constraint of the %s" % (kind, where), NAMES,
                   *two_chains(tree, where, (kind, good[kind]),
                               (kind, bad[kind])))
        t.no("one name of two is outside, " + where, NAMES,
             *constrained(tree, ("dns", "a.example.org"),
                          ("uri", "spiffe://evil.org/a"), where=where))
    t.ok("permitted DNS names alone, a leaf without one",
         *constrained(nc(permit=[("dns", "example.org")]),
                      ("uri", "spiffe://evil.org/a")))
    for tree in ({"permit": [("dns", "example.org")]},
                 {"exclude": [("dns", "evil.com")]}):
        what = "%s DNS names, no SAN, " % list(tree)[0]
        t.no(what + "a CN outside", NAMES,
             *constrained(nc(**tree), subject="evil.com"))
        t.ok(what + "a CN inside",
             *constrained(nc(**tree), subject="a.example.org"))
        t.ok(what + "a CN that is no DNS name",
             *constrained(nc(**tree), subject="camera 7, hall"))
    constraint_shapes(t)
    constraint_sums(t)
    directories(t)
    subject_email(t)


def two_chains(tree, where, good, bad):
    anchors, first = constrained(tree, good, where=where)
    return anchors, first, [Cert("client", first[0].issuer,
                                 exts={"san": san(bad)})] + first[1:]


def constraint_shapes(t):
    dns = ("dns", "example.org")
    inside, outside = ("dns", "a.example.org"), ("dns", "evil.com")
    soft = nc(permit=[dns], critical=False)
    t.ok("constraints not critical, inside", *constrained(soft, inside))
    t.no("constraints not critical, outside", NAMES,
         *constrained(soft, outside))
    for n, what in ((1, "minimum"), (0, "maximum 0")):
        tree = nc(permit=[subtree(dns, minimum=n or None,
                                  maximum=None if n else 0)])
        t.no("a constraint with a " + what, NAMES + "|m[ia][nx]imum",
             *constrained(tree, inside))
    t.no("constraints without subtrees", NAMES + "|" + MALFORMED,
         *constrained(nc(raw=seq()), inside))
    t.no("constraints with an empty list", NAMES + "|" + MALFORMED,
         *constrained(nc(raw=seq(context(0))), inside))
    t.no("constraints with bytes behind", NAMES + "|" + MALFORMED,
         *constrained(nc(raw=seq(context(0, subtree(dns))) + b"\0"), inside))
    t.no("a constraint of an unknown choice", NAMES + "|" + MALFORMED,
         *constrained(nc(permit=[seq(implicit(15, b"x"))]), inside))
    t.ok("permitted DNS names: all",
         *constrained(nc(permit=[("dns", "")]), inside))
    t.no("excluded DNS names: all", NAMES,
         *constrained(nc(exclude=[("dns", "")]), inside))
    t.no("permitted .example.org, leaf example.org", NAMES,
         *constrained(nc(permit=[("dns", ".example.org")]),
                      ("dns", "example.org")))
    t.no("excluded .example.org, leaf a.example.org", NAMES,
         *constrained(nc(exclude=[("dns", ".example.org")]), inside))
    t.no("excluded example.org, leaf a.example.org.", NAMES + "|DNS|dns",
         *constrained(nc(exclude=[dns]), ("dns", "a.example.org.")))
    t.no("an IP constraint of five bytes", NAMES + "|IP|" + MALFORMED,
         *constrained(nc(permit=[("ip", b"12345")]), ("ip", "192.0.2.1")))
    t.no("an IP constraint with holes in its mask", NAMES + "|IP|mask",
         *constrained(nc(permit=[("ip", b"\xc0\0\2\0\xff\0\xff\0")]),
                      ("ip", "192.0.2.1")))
    t.no("excluded IPv4: all", NAMES, *constrained(
        nc(exclude=[("ip", "0.0.0.0/0")]), ("ip", "192.0.2.1")))
    for form, value in (("rid", "1.3.6.1.4.1.99999.3"), ("other", "x")):
        for how in ("permit", "exclude"):
            tree = nc(**{how: [(form, value)]})
            t.ok("%s: unsupported form %s, absent" % (how, form),
                 *constrained(tree, inside))
            t.no("%s: unsupported form %s, present" % (how, form), NAMES,
                 *constrained(tree, inside, (form, value)))
    for uri in ("urn:a:b", "https:///x", "https://192.0.2.1/",
                "https://[2001:db8::1]/"):
        for how in ("permit", "exclude"):
            t.no("%s: URI constraint, leaf %s" % (how, uri), NAMES + "|URI",
                 *constrained(nc(**{how: [("uri", "example.org")]}),
                              ("uri", uri)))
    t.no("an email constraint, a leaf without @", NAMES + "|e-?mail",
         *constrained(nc(permit=[("email", "example.org")]),
                      ("email", "example.org")))
    t.no("constraints in a leaf", NAMES, A,
         client(exts={"nc": nc(permit=[dns])}))


def constraint_sums(t):
    """Several constraints: all of them, and what is excluded wins."""
    both = nc(permit=[("dns", "example.org")],
              exclude=[("dns", "secret.example.org")])
    t.ok("permitted and not excluded",
         *constrained(both, ("dns", "a.example.org")))
    t.no("permitted and excluded", NAMES,
         *constrained(both, ("dns", "a.secret.example.org")))
    either = nc(permit=[("dns", "example.org"), ("dns", "example.net")])
    t.ok("the second of two permitted",
         *constrained(either, ("dns", "a.example.net")))
    t.no("none of two permitted", NAMES,
         *constrained(either, ("dns", "a.example.com")))
    top = inter("upper", ROOT, exts={"nc": nc(permit=[("dns",
                                                       "example.org")])})
    narrow = inter("lower", top, exts={"nc": nc(permit=[
        ("dns", "sub.example.org")])})
    other = inter("elsewhere", top, exts={"nc": nc(permit=[
        ("dns", "example.com")])})

    def below(mid, host):
        return [leaf(mid, exts={"san": san(("dns", host))}), mid, top]

    t.ok("narrowed, inside", A, below(narrow, "a.sub.example.org"))
    t.no("narrowed, inside the upper alone", NAMES, A,
         below(narrow, "a.example.org"))
    t.no("widened below, inside the lower alone", NAMES, A,
         below(other, "a.example.com"))
    t.no("widened below, inside the upper alone", NAMES, A,
         below(other, "a.example.org"))
    named = inter("named", top, exts={"san": san(("dns", "ca.evil.com"))})
    t.no("a CA with a name outside", NAMES, A, below(named, "a.example.org"))
    again = Cert("upper", top, ca=True, keyed="upper again",
                 exts={"san": san(("dns", "ca.evil.com"))})
    t.ok("a self-issued CA with a name outside", A,
         below(again, "a.example.org"))


def directories(t):
    acme = name(("C", "DE"), ("O", "Acme"))

    def under(tree, *parts, string=g.utf8, names=()):
        return constrained(tree, *names, subject=name(*parts, string=string))

    permit, exclude = nc(permit=[("dir", acme)]), nc(exclude=[("dir", acme)])
    inside = [("as it is", [("C", "DE"), ("O", "Acme"), ("CN", "x")], {}),
              ("the name itself", [("C", "DE"), ("O", "Acme")], {}),
              ("as PrintableString", [("C", "DE"), ("O", "Acme"),
                                      ("CN", "x")],
               {"string": g.printable}),
              ("in other case", [("C", "de"), ("O", "ACME"), ("CN", "x")],
               {})]
    outside = [("another O", [("C", "DE"), ("O", "Other"), ("CN", "x")]),
               ("shorter", [("C", "DE")]),
               ("in other order", [("O", "Acme"), ("C", "DE"), ("CN", "x")]),
               ("deeper", [("DC", "org"), ("C", "DE"), ("O", "Acme")]),
               ("in one RDN", [[("C", "DE"), ("O", "Acme")], ("CN", "x")])]
    for how, parts, keys in inside:
        t.ok("permitted directory, subject " + how,
             *under(permit, *parts, **keys))
        t.no("excluded directory, subject " + how, NAMES,
             *under(exclude, *parts, **keys))
    for how, parts in outside:
        t.no("permitted directory, subject " + how, NAMES,
             *under(permit, *parts))
        t.ok("excluded directory, subject " + how, *under(exclude, *parts))
    t.no("permitted directory, a directory SAN outside", NAMES,
         *under(permit, *inside[0][1],
                names=[("dir", name(("O", "Other")))]))
    t.ok("permitted directory, a directory SAN inside",
         *under(permit, *inside[0][1], names=[("dir", acme)]))
    top = inter("constrained", ROOT, exts={"nc": permit})
    t.ok("permitted directory, no subject", A,
         [Cert(name(), top, exts={"san": san(("dns", "a.b"),
                                             critical=True)}), top])
    good = Cert(name(("C", "DE"), ("O", "Acme"), ("CN", "CA")), top, ca=True,
                keyed="dir mid")
    end = Cert(name(("C", "DE"), ("O", "Acme"), ("CN", "x")), good)
    evil = Cert(name(("C", "DE"), ("O", "Evil")), good)
    t.pair("directory of the grandparent", NAMES, A, [end, good, top],
           [evil, good, top])
    stray = Cert(name(("O", "Evil")), top, ca=True, keyed="dir stray")
    t.no("permitted directory, a CA outside", NAMES, A,
         [Cert(name(("C", "DE"), ("O", "Acme")), stray), stray, top])


def subject_email(t):
    tree = nc(permit=[("email", "example.org")])

    def mailed(value):
        return name(("CN", "x"), ("EMAIL", value))

    t.ok("emailAddress in the subject, inside",
         *constrained(tree, subject=mailed("a@example.org")))
    t.no("emailAddress in the subject, outside", NAMES,
         *constrained(tree, subject=mailed("a@evil.org")))
    t.no("emailAddress in the subject, outside, of the grandparent", NAMES,
         *constrained(tree, subject=mailed("a@evil.org"),
                      where="grandparent"))
    t.no("emailAddress in the subject, excluded", NAMES,
         *constrained(nc(exclude=[("email", "evil.org")]),
                      subject=mailed("a@evil.org")))


# ---- extensions ------------------------------------------------------------

def extensions(t):
    critical = "critical"
    t.ok("an unknown extension", A, client(more=[ext("unknown", g.NULL)]))
    t.no("an unknown critical extension in the leaf", critical, A,
         client(more=[ext("unknown", g.NULL, True)]))
    t.no("an unknown critical extension in the intermediate", critical, A,
         with_ca({"x": ext("unknown", g.NULL, True)}))
    odd = root("critical root", more=[ext("unknown", g.NULL, True)])
    t.no("an unknown critical extension in the anchor", critical, [odd],
         [leaf(odd)], load=True)
    t.ok("policies", A, client(more=[ext("policies", seq(seq(oid(
        "1.3.6.1.4.1.99999.4"))))]))
    t.ok("CRL distribution point and AIA", A, client(more=[
        ext("crldp", seq(seq(context(0, context(0, general(
            "uri", "http://a.b/crl")))))),
        ext("aia", seq(seq(oid("1.3.6.1.5.5.7.48.2"),
                           general("uri", "http://a.b/ca"))))]))
    any_policy = ext("policies", seq(seq(oid("2.5.29.32.0"))), True)
    t.ok("critical policies, of which nothing is required", A,
         [Cert("client", inter("policed", ROOT), more=[any_policy]),
          inter("policed", ROOT, more=[any_policy,
                                       ext("inhibit", integer(0), True)])])
    t.no("policies are required and there are none", "polic|critical", A,
         with_ca({"x": ext("policy_constraints", seq(implicit(0, b"\0")),
                           True)}))
    t.no("policies are required, and not even critically", "polic|critical", A,
         with_ca({"x": ext("policy_constraints", seq(implicit(0, b"\0")))}))
    t.ok("extensions in any order", A,
         client(order="aki eku ski ku bc"))
    names = {"san": san(("uri", "https://a.b/c"))}
    for kind, value in (("basicConstraints", bc()),
                        ("keyUsage", ku("digitalSignature")),
                        ("extendedKeyUsage", eku("clientAuth")),
                        ("subjectAltName", names["san"]),
                        ("subjectKeyIdentifier", ski(b"\1" * 20))):
        t.no(kind + " twice", "twice|duplicate", A,
             client(exts=names, more=[value]), tls=False)
    t.no("an unknown extension twice", "twice|duplicate", A,
         client(more=[ext("unknown", g.NULL)] * 2))
    t.no("an extension twice in the intermediate", "twice|duplicate", A,
         with_ca({"again": bc(True)}))
    t.no("no extensions, yet the field", MALFORMED + "|extension", A,
         client(raw_exts=context(3, seq())))
    malformed(t)


def malformed(t):
    """Each extension that we read: empty, of another type, with a tail."""
    good = {"bc": seq(), "ku": g.flags(0), "eku": seq(oid(
        g.USAGES["clientAuth"])), "san": seq(general("dns", "a.example")),
        "ski": octets(b"\1" * 20), "aki": seq(implicit(0, b"\1" * 20))}
    for kind, value in good.items():
        for how, spoilt in (("empty", b""), ("of another type", g.utf8("x")),
                            ("with a byte behind", value + b"\0"),
                            ("cut", value[:-1])):
            if (kind, how) in (("bc", "cut"),):
                spoilt = b"\x30"
            t.no("%s %s" % (kind, how), MALFORMED + "|subjectAltName", A,
                 client(exts={kind: ext(kind, spoilt)}),
                 tls=how == "with a byte behind")
    t.no("extendedKeyUsage without a purpose", MALFORMED + "|usage", A,
         client(exts={"eku": ext("eku", seq())}))
    t.no("subjectAltName without a name", MALFORMED + "|alt", A,
         client(exts={"san": ext("san", seq())}))
    t.no("keyUsage with wrong padding", MALFORMED + "|usage", A,
         client(exts={"ku": ext("ku", bits(b"\x81", 7), True)}))
    t.no("a critical flag of 01", MALFORMED + "|boolean|critical", A,
         client(more=[seq(oid(g.EXTENSIONS["unknown"]), der(1, b"\1"),
                          octets(g.NULL))]))
    t.no("a byte behind the certificate", MALFORMED, A,
         client(spoil=lambda d: d + b"\0"), tls=False)
    t.no("a cut certificate", MALFORMED, A, client(spoil=lambda d: d[:-1]),
         tls=False)
    t.no("an indefinite length", MALFORMED, A,
         client(spoil=lambda d: b"\x30\x80" + g.der_read(d)[1] + b"\0\0"),
         tls=False)
    t.no("a malformed intermediate", MALFORMED, A,
         [leaf(MID), inter("middle", ROOT, spoil=lambda d: d[:-1])],
         tls=False)
    t.ok("a malformed certificate behind a good chain", A,
         client() + [root("stranger", spoil=lambda d: d[:-1])], tls=False)


def heads(t):
    """Serial and version."""
    t.ok("serial 0", A, client(serial=0))
    t.ok("a serial of 20 bytes", A, client(serial=1 << 158))
    t.no("a serial of 21 bytes", "serial", A, client(serial=1 << 160))
    t.no("a negative serial", "serial", A, client(serial=-5))
    t.no("a serial that is not minimal", "serial|minimal", A,
         [leaf(MID, **{"serial": der(2, b"\0\1")}), MID], tls=False)
    t.no("an empty serial", "serial|integer", A,
         [leaf(MID, **{"serial": der(2)}), MID], tls=False)
    old = root("v1 root", version=b"", raw_exts=b"")
    t.no("a v1 anchor", "version|CA", [old], [leaf(old)], load=True)
    t.no("a v1 leaf", "version", A, client(version=b"", raw_exts=b""))
    t.no("a v1 leaf with extensions", "version", A, client(version=b""))
    t.no("a v2 leaf", "version", A,
         client(version=context(0, integer(1)), raw_exts=b""))
    t.no("a v4 leaf", "version", A, client(version=context(0, integer(3))))
    t.ok("unique identifiers (RFC 5280 4.1.2.8)", A,
         client(unique=implicit(1, b"\0\1") + implicit(2, b"\0\2")))
    t.no("v1 written out", "version|default", A,
         client(version=context(0, integer(0)), raw_exts=b""))
    t.ok('v3 without extensions, eku = "any"', A, client(raw_exts=b""),
         eku="any")


# ---- names of the client ---------------------------------------------------

def leaf_names(t):
    bad = "name|control|NUL|character|byte|UTF-8|empty|wildcard|DNS|dns|" \
          "e-?mail|URI|IP"

    def cn(value, string=g.utf8):
        return client(subject=seq(g.rdns(("CN", value), string=string)))

    for what, value in (("NUL", "ops\0evil"), ("a newline", "ops\nroot"),
                        ("DEL", "ops\x7f"), ("C1", "ops\x85x")):
        t.no("a CN with " + what, bad, A, cn(value))
    for code in (0x61c, 0x200e, 0x200f, *range(0x2028, 0x202f),
                 *range(0x2066, 0x206a)):
        t.no("a CN with U+%04X" % code, "control or direction", A,
             cn("ops" + chr(code) + "toor"))
    for code in (0x200c, 0x200d, 0x202f, 0x206a):
        t.ok("a CN with U+%04X" % code, A, cn("\u0645" + chr(code) + "\u062e"))
    t.no("a CN that is not UTF-8", bad, A, cn(der(12, b"a\xff\xfe")),
         tls=False)
    t.no("a CN with a surrogate", bad, A, cn(der(12, b"a\xed\xa0\x80")),
         tls=False)
    t.no("a CN that is an INTEGER", bad + "|type|string", A, cn(der(2, b"\5")),
         tls=False)
    t.ok("a CN as PrintableString", A, cn("ops", g.printable))
    for how in (g.bmp, g.teletex, g.universal):
        t.ok("a CN as %s string" % how.__name__, A, cn("ops", how))
    t.ok("a CN of Greek letters", A, cn("Ελλάδα"))
    for kind, value in (
            ("dns", b"a\0.example.org"), ("dns", b"*.example.org"),
            ("dns", b"*"), ("dns", b""), ("dns", b" "), ("dns", b"a b"),
            ("dns", b"a.\xe4.org"), ("dns", b"a..b"), ("email", b"a\0@b.c"),
            ("email", b""), ("uri", b""), ("uri", b"https://a\0.b/"),
            ("uri", b"https://a b/"), ("uri", b"https://a/\n"),
            ("ip", b"12345"), ("ip", b"")):
        t.no("a SAN of %s %r" % (kind, value), bad, A,
             client(exts={"san": san((kind, value))}))
    t.ok("several names of each kind", A, client(exts={"san": san(
        ("dns", "a.example.org"), ("dns", "b.example.org"),
        ("email", "a@example.org"), ("ip", "192.0.2.1"), ("ip", "::1"),
        ("uri", "https://a.b/c"), ("uri", "https://a.b/d"),
        ("dir", name(("CN", "x"))), ("rid", "1.3.6.1"), ("other", "x"))}))
    hosts = [("dns", "a%d.example.org" % i) for i in range(65)]
    t.ok("64 names", A, client(exts={"san": san(*hosts[:64])}))
    t.no("65 names", "more than 64", A, client(exts={"san": san(*hosts)}))
    t.no("an empty CN", bad, A, cn(""))
    t.ok("no subject, a critical SAN", A, client(subject=name(), exts={
        "san": san(("dns", "a.example.org"), critical=True)}))
    t.ok("no subject, a SAN", A, client(subject=name(), exts={
        "san": san(("dns", "a.example.org"))}))
    t.no("no subject, no SAN", "name|subject|identity", A,
         client(subject=name()))
    two = [g.attribute("CN", "x"), g.attribute("OU", "ops")]
    for how, value in (("an attribute without its SET", seq(*two)),
                       ("an attribute behind its SET",
                        seq(der(0x31, two[0]), two[1])),
                       ("an attribute of three parts",
                        seq(der(0x31, seq(two[0][2:], two[1])))),
                       ("a SET in the wrong order",
                        seq(der(0x31, *sorted(two, reverse=True))))):
        t.no("a subject with " + how, MALFORMED, A, client(subject=value),
             tls="order" in how)
    t.no("an empty RDN", MALFORMED + "|RDN|name", A,
         client(subject=seq(der(0x31))))


def spiffe(t):
    good = "spiffe://example.org/ns/eu/sa/camera"

    def svid(*uris, **more):
        exts = {"san": san(*[("uri", u) for u in uris],
                           *more.pop("names", ()))}
        return client(exts=dict(exts, **more))

    t.ok("a SPIFFE ID", A, svid(good), route="/spiffe")
    t.ok("a SPIFFE ID and a DNS name", A,
         svid(good, names=[("dns", "a.b")]), route="/spiffe")
    word = "SPIFFE|URI"
    t.no("two URI SANs under a SPIFFE policy", word, A,
         svid(good, "spiffe://example.org/ns/eu/sa/other"), route="/spiffe")
    t.no("two URI SANs, one SPIFFE, under a SPIFFE policy", word, A,
         svid("https://a.b/", good), route="/spiffe")
    t.no("the same SPIFFE ID twice", word, A, svid(good, good),
         route="/spiffe")
    for what, uri in (
            ("port", "spiffe://example.org:1/a"),
            ("userinfo", "spiffe://u@example.org/a"),
            ("query", "spiffe://example.org/a?b"),
            ("fragment", "spiffe://example.org/a#b"),
            ("..", "spiffe://example.org/a/../b"),
            (".", "spiffe://example.org/a/./b"),
            ("empty segment", "spiffe://example.org/a//b"),
            ("slash at the end", "spiffe://example.org/a/"),
            ("no path", "spiffe://example.org"),
            ("a slash alone", "spiffe://example.org/"),
            ("capitals in the trust domain", "spiffe://Example.org/a"),
            ("percent-encoding", "spiffe://example.org/%61"),
            ("capitals in the scheme", "SPIFFE://example.org/a"),
            ("no trust domain", "spiffe:///a"),
            ("a letter that is not ASCII", "spiffe://example.org/ä"),
            ("more than 2048 bytes", "spiffe://example.org/" + "a" * 2040)):
        t.no("SPIFFE: " + what, word, A, svid(uri))
    t.no("a SPIFFE leaf with cRLSign", "cRLSign|key ?usage|SPIFFE", A,
         svid(good, ku=ku("digitalSignature", "cRLSign")), route="/spiffe")


# ---- CRLs ------------------------------------------------------------------

def crls(t):
    victim, free = leaf(MID, "victim"), leaf(MID, "free")
    mid2 = inter("revoked middle", ROOT)
    top, low = Crl(ROOT), Crl(MID)
    hit = Crl(MID, [victim])
    t.ok("CRLs that name nobody", A, [victim, MID], crls=[top, low])
    t.no("a revoked leaf", "revoked", A, [victim, MID], crls=[top, hit])
    t.ok("another client's leaf is revoked", A, [free, MID], crls=[top, hit])
    t.ok("the order of CRLs is no matter", A, [free, MID], crls=[hit, top])
    sub = [leaf(mid2), mid2]
    t.no("a revoked intermediate", "revoked", A, sub,
         crls=[Crl(ROOT, [mid2]), Crl(mid2)])
    t.ok("an intermediate that is not revoked", A, sub,
         crls=[Crl(ROOT, [12345]), Crl(mid2)])
    t.no("the intermediate's CRL is missing", "CRL", A, [free, MID],
         crls=[top])
    t.no("the anchor's CRL is missing", "CRL", A, [free, MID], crls=[low])
    t.ok("the serial of another CA's CRL", A, [leaf(MID, serial=4711), MID],
         crls=[Crl(ROOT, [4711]), low])
    t.no("an old CRL beside a newer one that revokes", "revoked|number|older",
         A, [victim, MID], crls=[top, Crl(MID, number=3),
                                 Crl(MID, [victim], number=4)])
    t.no("a newer CRL that revokes before an old one",
         "revoked|number|older", A, [victim, MID],
         crls=[top, Crl(MID, [victim], number=4), Crl(MID, number=3)])
    twin = inter("middle", ROOT, keyed="middle twin")
    t.no("the CRL of a namesake alone", "CRL", A, [victim, MID],
         crls=[top, Crl(twin)])
    for how, lists in (("before", [Crl(twin), hit]),
                       ("behind", [hit, Crl(twin)])):
        t.no("revoked, the CRL of a namesake %s" % how, "revoked", A,
             [victim, MID], crls=[top] + lists)
        t.ok("not revoked, the CRL of a namesake %s" % how, A, [free, MID],
             crls=[top] + lists)
    t.ok("revoked by a namesake", A, [free, MID],
         crls=[top, low, Crl(twin, [free])])
    t.no("a serial of 20 bytes is revoked", "revoked", A,
         [leaf(MID, serial=1 << 158), MID], crls=[top, Crl(MID, [1 << 158])])
    t.no("serial 0 is revoked", "revoked", A, [leaf(MID, serial=0), MID],
         crls=[top, Crl(MID, [0])])
    t.no("revoked on hold", "revoked", A, [victim, MID],
         crls=[top, Crl(MID, entries=[Crl.entry(victim.serial, ext(
             "reason", der(10, b"\6")))])])
    many = list(range(50000, 50400))
    t.no("the last of many", "revoked", A, [leaf(MID, serial=50399), MID],
         crls=[top, Crl(MID, many)])
    t.ok("none of many", A, [leaf(MID, serial=50400), MID],
         crls=[top, Crl(MID, many)])
    t.no("a cross-signed CA is revoked by one issuer", "revoked|" + NO_PATH,
         A, sub, crls=[Crl(ROOT, [mid2]), Crl(mid2)])
    t.ok("the CRL of an anchor that is an intermediate", [MID], [free],
         crls=[low])
    t.no("the CRL of an anchor that is an intermediate, revoked", "revoked",
         [MID], [victim], crls=[hit])
    t.no("the CRL of another CA alone", "CRL", A, [leaf(ROOT)], crls=[low])
    t.no("a CRL by the issuer's name in PrintableString", "revoked", A,
         [victim, MID], crls=[top, Crl(MID, [victim], issuer_name=name(
             ("CN", "Middle"), string=g.printable))])
    rsa = inter("rsa crl middle", ROOT, keyed="rsa2048:c")
    t.ok("a CRL signed by RSA-PSS", A, [leaf(rsa), rsa],
         crls=[top, Crl(rsa, alg="pss-sha256")])
    crl_refused(t, top, low, free, rsa)


def crl_refused(t, top, low, free, rsa):
    """CRLs that are refused as such: at load, with the reason; but a CRL of an
    intermediate can be verified only with the chain that brings its key."""
    def bad(title, words, crl):
        t.no("CRL: " + title, words, A, [free, MID], crls=[top, crl],
             load=True)

    def unverified(title, words, how, ca=ROOT, mid=MID):
        t.no("CRL of an anchor: " + title, words, [ca], [leaf(ca)],
             crls=[Crl(ca, **how)], load=True)
        t.no("CRL of an intermediate: " + title, "CRL", A, [leaf(mid), mid],
             crls=[top, Crl(mid, **how)])

    signed = "signature|not signed by"
    unverified("spoilt signature", signed, {"spoil_signature": flip})
    unverified("signed by another", signed, {"signer": "another key"})
    signs = {"ku": ku("keyCertSign")}
    unverified("issuer without cRLSign", "cRLSign", {},
               root("mute root", exts=signs),
               inter("mute middle", ROOT, exts=signs))
    unverified("SHA-1", "SHA-?1|not signed by", {"alg": "sha1"},
               root("rsa crl root", keyed="rsa2048:c"), rsa)
    t.ok("an issuer without keyUsage", A, [leaf(inter("any use", ROOT, exts={
        "ku": None})), inter("any use", ROOT, exts={"ku": None})],
         crls=[top, Crl(inter("any use", ROOT))])
    bad("expired", "expired|nextUpdate|overdue", Crl(MID, days=(-9, -1)))
    bad("of the future", "not valid before|thisUpdate", Crl(MID, days=(1, 9)))
    bad("delta", "delta", Crl(MID, more=[ext("delta", integer(1), True)]))
    bad("indirect", "indirect", Crl(MID, more=[ext(
        "idp", seq(implicit(4, b"\xff")), True)]))
    bad("indirect by an entry", "indirect|critical|issuer", Crl(
        MID, entries=[Crl.entry(9, ext("cert_issuer", seq(general(
            "dir", name(("CN", "other")))), True))]))
    bad("unknown critical extension", "critical",
        Crl(MID, more=[ext("unknown", g.NULL, True)]))
    bad("unknown critical extension of an entry", "critical", Crl(
        MID, entries=[Crl.entry(9, ext("unknown", g.NULL, True))]))
    bad("without nextUpdate", "nextUpdate|update", Crl(MID, next_update=b""))
    bad("for attribute certificates alone", "attribute|critical|partial|"
        "distribution|covers|scope|some", Crl(MID, more=[ext(
            "idp", seq(implicit(5, b"\xff")), True)]))
    bad("for some reasons alone", "reason|critical|partial|distribution|some",
        Crl(MID, more=[ext("idp", seq(implicit(3, b"\1\x7e")), True)]))
    bad("other algorithm outside", "algorithm|differ", Crl(
        MID, outer=seq(oid(g.ECDSA["sha384"]))))
    bad("cut", "ends early", Crl(MID, spoil=lambda d: d[:-1]))
    bad("a byte behind", "bytes after", Crl(MID, spoil=lambda d: d + b"\0"))
    bad("an extension twice", "twice|duplicate",
        Crl(MID, more=[ext("number", integer(1))]))


# ---- all -------------------------------------------------------------------

def table():
    t = Table()
    for part in (paths, clones, crosses, loops, rollover, same_names,
                 names_match, amounts, signatures, keys, dates, basic, usage,
                 extended, constraints, extensions, heads, leaf_names, spiffe,
                 crls):
        part(t)
    names = [c.name for c in t.cases]
    twice = {n for n in names if names.count(n) > 1}
    assert not twice, twice
    return t.cases
