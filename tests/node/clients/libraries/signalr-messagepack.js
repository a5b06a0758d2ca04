import { connectBy, serve } from "./signalr.js";

export { serve };
export const connect = connectBy("messagepack", true);
