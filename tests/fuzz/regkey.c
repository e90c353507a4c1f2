// SPDX-License-Identifier: Apache-2.0
/* The text of a registration key: any bytes are refused or survive a round trip. */
#include "asr.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	char *text = malloc(bytes + 1), again[1024];
	struct reg_key k, k2;
	struct why why;

	memcpy(text, data, bytes);
	text[bytes] = 0;
	if (!ident_key_parse(text, &k, &why)) {
		if (ident_key_format(&k, again, sizeof(again)) || ident_key_parse(again, &k2, &why) ||
		    memcmp(k.secret, k2.secret, sizeof(k.secret)) || strcmp(k.address, k2.address))
			abort();
	}
	free(text);
	return 0;
}
