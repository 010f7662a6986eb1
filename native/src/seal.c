// SPDX-License-Identifier: MIT

/**
 * @file
 * Authenticated encryption with libcrypto. See seal.h.
 */

#include <errno.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/random.h>

#include <openssl/evp.h>

#include "seal.h"

#define USW_NONCE_BYTES 12

enum usw_cipher usw_seal_choose_cipher(void)
{
#if defined(__x86_64__)
	if (__builtin_cpu_supports("aes") && __builtin_cpu_supports("pclmul"))
		return USW_CIPHER_AES_256_GCM;
#elif defined(__aarch64__)
	const unsigned long aes = 1u << 3, polynomials = 1u << 4; // HWCAP_AES, HWCAP_PMULL

	if ((getauxval(AT_HWCAP) & (aes | polynomials)) == (aes | polynomials))
		return USW_CIPHER_AES_256_GCM;
#endif
	return USW_CIPHER_CHACHA20_POLY1305;
}

int usw_seal_key_create(struct usw_seal_key *key, enum usw_cipher cipher)
{
	void *page = mmap(NULL, USW_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);

	*key = (struct usw_seal_key){.cipher = cipher};
	if (page == MAP_FAILED)
		return -errno;
	key->bytes = page;
	// The lock may be refused by a limit; the others are as old as the kernels we run on.
	mlock(page, USW_PAGE_BYTES);
	if (madvise(page, USW_PAGE_BYTES, MADV_DONTDUMP) < 0 ||
	    madvise(page, USW_PAGE_BYTES, MADV_WIPEONFORK) < 0 ||
	    getrandom(page, USW_SEAL_KEY_BYTES, 0) != (ssize_t)USW_SEAL_KEY_BYTES) {
		usw_seal_key_destroy(key);
		return -EIO;
	}
	return 0;
}

void usw_seal_key_destroy(struct usw_seal_key *key)
{
	if (!key->bytes)
		return;
	explicit_bzero(key->bytes, USW_PAGE_BYTES);
	munmap(key->bytes, USW_PAGE_BYTES);
	key->bytes = NULL;
}

int usw_sealer_init(struct usw_sealer *sealer, const struct usw_seal_key *key)
{
	EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
	const EVP_CIPHER *cipher = key->cipher == USW_CIPHER_AES_256_GCM ? EVP_aes_256_gcm()
									 : EVP_chacha20_poly1305();

	sealer->context = NULL;
	if (!context)
		return -ENOMEM;
	if (!EVP_CipherInit_ex(context, cipher, NULL, key->bytes, NULL, 1)) {
		EVP_CIPHER_CTX_free(context);
		return -EIO;
	}
	sealer->context = context;
	return 0;
}

void usw_sealer_deinit(struct usw_sealer *sealer)
{
	EVP_CIPHER_CTX_free(sealer->context); // wipes the expanded key
	sealer->context = NULL;
}

/** Begin with one object: nonce and everything the seal is bound to. */
static bool begin(EVP_CIPHER_CTX *context, const struct usw_seal_bond *bond, int encrypt)
{
	const uint32_t bound[] = {bond->id,      bond->tier,  bond->slot,
				  bond->segment, bond->index, bond->length_bytes};
	unsigned char nonce[USW_NONCE_BYTES];
	int length;

	memcpy(nonce, &bond->generation, sizeof(bond->generation));
	memcpy(nonce + sizeof(bond->generation), &bond->index, sizeof(bond->index));
	return EVP_CipherInit_ex(context, NULL, NULL, NULL, nonce, encrypt) &&
	       EVP_CipherUpdate(context, NULL, &length, (const unsigned char *)bound,
				sizeof(bound));
}

int usw_seal(struct usw_sealer *sealer, const struct usw_seal_bond *bond, const void *plain,
	     void *sealed, struct usw_seal_tag *ret_tag)
{
	EVP_CIPHER_CTX *context = sealer->context;
	unsigned char nothing[16];
	int length;

	if (!begin(context, bond, 1) ||
	    !EVP_CipherUpdate(context, sealed, &length, plain, (int)bond->length_bytes) ||
	    !EVP_CipherFinal_ex(context, nothing, &length) ||
	    !EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, sizeof(*ret_tag), ret_tag))
		return -EIO;
	return 0;
}

int usw_unseal(struct usw_sealer *sealer, const struct usw_seal_bond *bond, const void *sealed,
	       const struct usw_seal_tag *tag, void *plain)
{
	EVP_CIPHER_CTX *context = sealer->context;
	struct usw_seal_tag expected = *tag; // libcrypto takes it for something to write to
	unsigned char nothing[16];
	int length;

	if (!begin(context, bond, 0) ||
	    !EVP_CipherUpdate(context, plain, &length, sealed, (int)bond->length_bytes) ||
	    !EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, sizeof(expected), &expected) ||
	    !EVP_CipherFinal_ex(context, nothing, &length))
		return -EBADMSG;
	return 0;
}
