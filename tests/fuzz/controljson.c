// SPDX-License-Identifier: Apache-2.0
/* A call on the control socket: any bytes are refused or are a call. */
#include "asr.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	json_t *message, *parameters;
	const char *method;
	bool more, oneway;

	if (!control_parse((const char *)data, bytes, &parameters, &method, &more, &oneway, &message)) {
		if (!json_is_object(parameters) || strlen(method) > bytes)
			abort();
		json_decref(message);
	}
	return 0;
}
