package x509

// Where the images of distributions have their certificate authorities; the first that is there is taken.
var certFiles = []string{
	"/etc/ssl/certs/ca-certificates.crt",
	"/etc/pki/tls/certs/ca-bundle.crt",
	"/etc/ssl/ca-bundle.pem",
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
	"/etc/ssl/cert.pem",
}

// All of these are read.
var certDirectories = []string{
	"/etc/ssl/certs",
	"/etc/pki/tls/certs",
}
